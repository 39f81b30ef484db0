"""The transformer from learnt triplane tokens to the triplane tokens of one image.

Attribute names follow the checkpoint. Norms precede their layers, and queries, keys and values have no bias.

Source: Tochilkin et al. 2024, arXiv 2403.02151; VAST-AI-Research/TripoSR@d26e331, tsr/models/transformer.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pipeline.engines.triposr.spec import BackboneSpec
from pipeline.nn.activations import activation
from pipeline.ops.attention import attend

GROUP_NORM_EPS = 1e-6
FEED_FORWARD_MULTIPLE = 4
GATED = "geglu"


class Attention(nn.Module):
    """Attention from one sequence to another, or to itself."""

    def __init__(self, width: int, heads: int, head_dim: int, *, context_width: int, bias: bool) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=bias)
        self.to_k = nn.Linear(context_width, inner, bias=bias)
        self.to_v = nn.Linear(context_width, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from (B, L, C) to a (B, M, E) context -> (B, L, C)."""
        q, k, v = (  # (B, L, C) -> (B, L, H, D), (B, M, E) -> (B, M, H, D)
            layer(sequence).unflatten(-1, (self.heads, -1))
            for layer, sequence in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        return self.to_out[0](attend(q, k, v).flatten(-2))  # (B, L, H, D) -> (B, L, HD) -> (B, L, C)


class Projection(nn.Module):
    """The first layer of a feed-forward network, `net.0`, with its activation.

    With `geglu` the linear layer is twice as wide, and the GELU of its second half gates the first half.
    Source: Shazeer 2020, arXiv 2002.05202, eq. 5.
    """

    def __init__(self, width: int, inner: int, activation_fn: str) -> None:
        super().__init__()
        self.is_gated = activation_fn == GATED
        self.proj = nn.Linear(width, inner * (1 + self.is_gated))
        self.activation = activation("gelu" if self.is_gated else activation_fn)

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., inner)
        if not self.is_gated:
            return self.activation(self.proj(x))
        hidden, gate = self.proj(x).chunk(2, dim=-1)  # (..., 2 inner) -> twice (..., inner)
        return hidden * self.activation(gate)


class FeedForward(nn.Module):
    """Linear layer with activation, then a linear layer back to the input width."""

    def __init__(self, width: int, activation_fn: str) -> None:
        super().__init__()
        inner = FEED_FORWARD_MULTIPLE * width
        # The release has a dropout layer at index 1: it has no weights, but it shifts the key of the next layer.
        self.net = nn.ModuleList([Projection(width, inner, activation_fn), nn.Identity(), nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the image tokens, and feed-forward."""

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        cross_attention_dim: int,
        *,
        activation_fn: str = GATED,
        attention_bias: bool = False,
    ) -> None:
        super().__init__()
        heads, head_dim = num_attention_heads, attention_head_dim
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = Attention(dim, heads, head_dim, context_width=dim, bias=attention_bias)
        self.attn2 = Attention(dim, heads, head_dim, context_width=cross_attention_dim, bias=attention_bias)
        self.ff = FeedForward(dim, activation_fn)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, L, C) triplane tokens and (B, M, E) image tokens -> (B, L, C)."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer1D(nn.Module):
    """Transformer blocks between two projections, with a skip connection around all of them."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        width = spec.num_attention_heads * spec.attention_head_dim
        self.norm = nn.GroupNorm(spec.norm_num_groups, spec.in_channels, eps=GROUP_NORM_EPS)
        self.proj_in = nn.Linear(spec.in_channels, width)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                width,
                spec.num_attention_heads,
                spec.attention_head_dim,
                spec.cross_attention_dim,
                activation_fn=spec.activation_fn,
                attention_bias=spec.attention_bias,
            )
            for _ in range(spec.num_layers)
        )
        self.proj_out = nn.Linear(width, spec.in_channels)

    def forward(self, x: Tensor, context: Tensor, *, on_block: Callable[[int], None] = lambda done: None) -> Tensor:
        """Compute the triplane tokens of an image.

        Args:
            x: (B, C, L) learnt triplane tokens.
            context: (B, M, E) image tokens.
            on_block: receives the number of each finished block.

        Returns:
            (B, C, L).
        """
        # The group norm runs on (B, C, L), so its statistics include the L tokens, unlike a layer norm's.
        hidden = self.proj_in(self.norm(x).mT)  # (B, C, L) -> (B, L, C) -> (B, L, W)
        for number, block in enumerate(self.transformer_blocks, start=1):
            hidden = block(hidden, context)
            on_block(number)
        return self.proj_out(hidden).mT + x  # (B, L, W) -> (B, C, L)
