"""What a request passes before and after the model: identity, keys, limits, errors, log. Plain ASGI; knows no Ray."""
