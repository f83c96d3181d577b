"""From logits to a verdict."""
