"""The HTTP API in OpenAI's shapes, one module per kind of thing."""
