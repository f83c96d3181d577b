"""Bundles: the folders that ``export`` writes and the other commands open."""
