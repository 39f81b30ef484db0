"""The TRELLIS engine: the released image-to-3D model in plain PyTorch."""
