"""What a study found, for people: one HTML page, a CSV of its trials, a table for the terminal."""
