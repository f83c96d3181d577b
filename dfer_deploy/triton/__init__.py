"""A real Triton server, its client and its load generator."""
