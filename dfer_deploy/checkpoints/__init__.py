"""Checkpoints and weight files, read without executing anything from them."""
