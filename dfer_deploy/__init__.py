"""Train DFER-CLIP, and take a trained checkpoint to a verified Triton deployment."""

__version__ = "0.1.0"
