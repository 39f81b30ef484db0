"""Kernels without weights, in plain PyTorch; each has a slow twin in tests/reference."""
