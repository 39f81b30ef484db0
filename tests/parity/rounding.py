"""Products of rounded numbers in models that are otherwise float32: which rounding error comes from where.

A GPU's matrix units multiply rounded numbers exactly and add in float32. That is computed here with float32 products of
rounded factors, so the error of a way to compute is measured without a GPU. Everything between products, residual
stream, norms, softmax and modulation, stays float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.precision import HEAVY_LAYERS


@dataclass(frozen=True)
class Rounding:
    """How factors of products are rounded.

    Attributes:
        bits: of the significand, the leading one included: 8 of bfloat16, 11 of float16 and TF32.
        weights: parts that a weight is stored as, each the rounded rest of the earlier ones; 0 leaves it exact.
        activations: parts of the other factor of a layer, and of both factors of attention; 0 leaves them exact.
    """

    bits: int
    weights: int = 1
    activations: int = 1

    def parts(self, x: Tensor, count: int) -> list[Tensor]:
        """Numbers whose sum is `x` but for its last bits: any shape -> that shape, `count` times."""
        if count == 0:
            return [x]
        found, rest = [], x
        for _ in range(count):
            found.append(rounded(rest, self.bits))
            rest = rest - found[-1]
        return found

    def product(self, multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, *, is_layer: bool) -> Tensor:
        """Sum of the products of parts, without those that are as small as what the parts leave out."""
        xs, ys = self.parts(x, self.activations), self.parts(y, self.weights if is_layer else self.activations)
        kept = max(len(xs), len(ys))
        pairs = [(one, other) for i, one in enumerate(xs) for j, other in enumerate(ys) if i + j < kept]
        return sum((multiply(*pair) for pair in reversed(pairs[1:])), multiply(*pairs[0]))


ROUNDINGS = {
    "bfloat16-products": Rounding(8),
    "bfloat16-weights": Rounding(8, activations=0),
    "bfloat16-activations": Rounding(8, weights=0),
    "bfloat16-two-part-weights": Rounding(8, weights=2),
    "bfloat16-two-part-activations": Rounding(8, activations=2),
    "bfloat16-two-parts": Rounding(8, weights=2, activations=2),
    "float16-products": Rounding(11),
    "float16-weights": Rounding(11, activations=0),
}
"""By name. Eleven bits are also those of TF32, whose range is that of float32; the fixtures stay inside both ranges."""


def rounded(x: Tensor, bits: int) -> Tensor:
    """Round float32 to the nearest number with so many bits, ties to even: any shape -> that shape."""
    dropped = 24 - bits
    whole = x.contiguous().view(torch.int32)
    whole = (whole + ((1 << (dropped - 1)) - 1) + ((whole >> dropped) & 1)) >> dropped << dropped
    return whole.view(torch.float32)


def round_products(module: nn.Module, rounding: Rounding) -> None:
    """Make the layers that half precision would change multiply rounded numbers, in place."""
    for layer in heavy_layers(module):
        _replace_forward(layer, rounding)


def heavy_layers(module: Any) -> list[nn.Module]:
    """The layers whose type `set_dtype` changes."""
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.set_dtype(torch.float16)
    layers: list[nn.Module] = [
        layer
        for layer in module.modules()
        if isinstance(layer, HEAVY_LAYERS) and next(layer.parameters()).dtype == torch.float16
    ]
    module.set_dtype(torch.float32)
    module.load_state_dict(kept)
    return layers


def _replace_forward(layer: Any, rounding: Rounding) -> None:
    forward, holder = layer.forward, getattr(layer, "conv", layer)
    weight, bias = holder.weight.data, holder.bias

    def product(x: Tensor, *others: Any) -> Tensor:
        def multiply(x: Tensor, factor: Tensor) -> Tensor:
            holder.weight.data = factor
            return forward(x, *others)

        holder.bias = None
        try:
            found = rounding.product(multiply, x, weight, is_layer=True)
        finally:
            holder.weight.data, holder.bias = weight, bias
        if bias is None:
            return found
        return found + (bias[:, None, None, None] if isinstance(layer, nn.Conv3d) else bias)

    layer.forward = product


@contextmanager
def rounded_attention(rounding: Rounding) -> Iterator[None]:
    """Inside, torch's attention multiplies rounded numbers, and rounds its weights between the two products."""
    exact = F.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        scores = rounding.product(torch.matmul, q, k.mT, is_layer=False) * q.shape[-1] ** -0.5
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
        total = weights.sum(dim=-1, keepdim=True)  # of the weights before they are rounded, as in flash attention
        return rounding.product(torch.matmul, weights, v, is_layer=False) / total

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = exact
