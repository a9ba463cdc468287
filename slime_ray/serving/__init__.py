"""Checkpoints behind an OpenAI-compatible endpoint: Ray Serve, vLLM, and what lies between them and a client."""
