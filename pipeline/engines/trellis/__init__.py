"""The TRELLIS engine: the released image-to-3D model in plain PyTorch.

Source: Xiang et al. 2024, arXiv 2412.01506.
"""
