"""Jobs on a Ray cluster that is reached by its address alone: what is sent, submitted once, followed, stopped."""
