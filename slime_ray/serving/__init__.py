"""Checkpoints behind an OpenAI-compatible endpoint: Ray Serve, vLLM, and what lies between them and a client."""

import os

# As soon as it is imported vLLM says on standard output what it misses here. Its engines log as ever, into Ray's logs.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
