"""TRELLIS.2: the released 4-billion-parameter image-to-3D model with materials, in PyTorch."""
