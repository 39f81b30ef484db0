"""Kernels without weights, in plain PyTorch; each has a slow opposite in tests/reference."""
