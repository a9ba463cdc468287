"""Studies: which settings of a recipe matter, and which are best for a user's own data."""
