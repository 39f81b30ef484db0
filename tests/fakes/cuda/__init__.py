"""A CUDA device that is not there: tensors say that they are on cuda:0 and compute on the CPU.

It finds what a first run on a GPU would fail at, and counts what it would do and wait for. `pretended_cuda` in `device`
makes it exist inside a `with` block; `counts` holds what was counted, by stage and by line of the package.

What it cannot tell: seconds, memory, the rounding of a GPU's kernels, streams, and Triton kernels. It needs a build of
torch without CUDA, and knows no autograd.
"""
