"""Preference objectives: pure functions of token log-probabilities. They import only torch."""
