"""DFER-CLIP in PyTorch (Zhao and Patras, BMVC 2023)."""
