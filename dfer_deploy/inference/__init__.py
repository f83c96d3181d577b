"""From frames to answers over time."""
