"""What a flow model is conditioned by: keys and values of the context tokens for each of its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.nn.attention import CrossCache
from pipeline.nn.dense_blocks import ModulatedCrossBlock


@dataclass(frozen=True, eq=False)
class Condition:
    """Keys and values of the condition tokens for every block's cross-attention; computed once per request.

    Attributes:
        layers: of each block.
        negative_pass: the pass of `layers` that holds the negative condition; None if that is all zero, which each
            layer answers with a constant, or if there is no unguided pass.
    """

    layers: tuple[CrossCache, ...]
    negative_pass: int | None = None

    def select(self, passes: Sequence[int], *, unguided: bool) -> Condition:
        """Return the condition of the chosen guided passes, with or without the unguided pass after them."""
        if unguided and self.negative_pass is not None:
            passes, unguided = [*passes, self.negative_pass], False
        return Condition(tuple(layer.select(passes, unguided=unguided) for layer in self.layers))


def encode_condition(blocks: Iterable[nn.Module], tokens: Tensor, *, negative: Tensor | None = None) -> Condition:
    """Compute keys and values of the tokens for every block.

    Args:
        blocks: of `ModulatedCrossBlock`.
        tokens: (P, L, E), one context per guided pass, or (P, B, L, E), one per pass and batch element.
        negative: (1, L, E) context of the unguided pass; None if there is no such pass.
    """
    # For a context of zeros the cross-attention is a constant per layer, see `CrossCache.unguided`. Any other context
    # is attended to like those of the guided passes.
    is_zero = negative is not None and not bool(negative.any())
    negative_pass = None
    if negative is not None and not is_zero:
        tokens, negative_pass = torch.cat([tokens, negative]), len(tokens)  # (P + 1, L, E)
    if tokens.ndim == 3:
        tokens = tokens[:, None]  # (P, L, E) -> (P, 1, L, E)
    layers: list[CrossCache] = []
    for block in blocks:
        assert isinstance(block, ModulatedCrossBlock)
        layers.append(block.cross_attn.cache(tokens, unguided=is_zero))
    return Condition(tuple(layers), negative_pass)
