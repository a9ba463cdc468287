"""The bundled demonstration: generated data and a tiny model, nothing to download."""
