"""Operations with a Triton kernel for CUDA beside their PyTorch reference, and the rule that chooses between them."""
