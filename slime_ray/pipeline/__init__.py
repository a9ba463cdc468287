"""The whole way in one command: data inspected, trained, served, answered, judged, reported."""
