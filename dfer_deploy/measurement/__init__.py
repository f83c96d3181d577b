"""Measure how fast a bundle is served, and find its best serving options."""
