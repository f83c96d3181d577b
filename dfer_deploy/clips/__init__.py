"""From videos and frame folders to clips: uint8 [16, H, W, 3], RGB in [0, 255]."""
