"""From a listing to the network's inputs: decoding, preprocessing, tokens, augmentation, data sets."""
