"""One stage of training: the loop (torch only), what surrounds it, and Ray Train (workers.py alone)."""
