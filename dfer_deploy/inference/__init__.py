"""Frames to answers over time."""
