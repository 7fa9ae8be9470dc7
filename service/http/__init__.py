"""The HTTP side: server, protocol, middleware, keys, routes, pages, the OpenAPI document."""
