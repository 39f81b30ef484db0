"""Operations without weights, in plain PyTorch; each has a slow reference implementation in tests/reference."""
