"""From load to numbers."""
