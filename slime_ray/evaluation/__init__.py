"""Judging what a model answers: checks, questions, answers, judgments and reports."""
