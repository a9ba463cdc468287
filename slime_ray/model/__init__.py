"""Loading a model, its adapters, and the log-probabilities of completion tokens."""
