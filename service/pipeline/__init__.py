"""The steps of a request: admission, options, fetching, decoding, preparing, inference."""
