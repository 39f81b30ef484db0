"""Velocities of flow models under several contexts, such as images or a text, and under a negative one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.nn.condition import Condition
from pipeline.ops.voxels import VoxelSet
from pipeline.sampling.guidance import Evaluate

TIME_SCALE = 1000.0  # the models were trained on times in [0, 1000]


@dataclass(frozen=True, eq=False)
class Contexts:
    """What a generation is conditioned by.

    Attributes:
        tokens: (P, L, E) tokens of P images, or of a text.
        negative: (1, L, E) context of the unguided pass: zeros for the image models, an encoded text for the text
            models.
    """

    tokens: Tensor
    negative: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


class DenseFlow(Protocol):
    """A flow model over a dense latent."""

    def encode_condition(self, tokens: Tensor, *, negative: Tensor | None = None) -> Condition:
        """Keys and values of the tokens."""
        ...

    def __call__(self, x: Tensor, t: Tensor, condition: Condition, /) -> Tensor:
        """The velocity: (B, C, R, R, R) -> (B, D, R, R, R)."""
        ...


class SparseFlow(Protocol):
    """A flow model over latents of voxels."""

    def encode_condition(self, tokens: Tensor, *, negative: Tensor | None = None) -> Condition:
        """Keys and values of the tokens."""
        ...

    def __call__(self, feats: Tensor, voxels: VoxelSet, t: Tensor, condition: Condition, /) -> Tensor:
        """The velocity: (P, N, C) -> (P, N, D)."""
        ...


def model_time(t: float, like: Tensor) -> Tensor:
    """Return a time in [0, 1] as the models' (1,) float32 input, on the device of `like`."""
    return torch.full((1,), TIME_SCALE * t, dtype=torch.float32, device=like.device)  # a kernel, and no copy


def structure_velocities(flow: DenseFlow, contexts: Contexts) -> Evaluate:
    """Return the velocities of the (B, C, R, R, R) dense latent under each context and the negative one, in one batch.

    Args:
        flow: the model.
        contexts: what the passes are conditioned by; keys and values are computed here, once.
    """
    condition = flow.encode_condition(contexts.tokens, negative=contexts.negative)

    def evaluate(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
        passes = len(images) + unguided
        stacked = x.repeat(passes, 1, 1, 1, 1)  # (B, C, R, R, R) -> (passes B, C, R, R, R)
        velocities = flow(stacked, model_time(t, x), condition.select(images, unguided=unguided))
        return velocities.unflatten(0, (passes, len(x)))  # (passes, B, C, R, R, R)

    return evaluate


def latent_velocities(flow: SparseFlow, voxels: VoxelSet, contexts: Contexts) -> Evaluate:
    """Return the velocities of the (1, N, C) latents under each context and the negative one, in one batch.

    Args:
        flow: the model.
        voxels: the N voxels; all passes share the tables that are derived from them.
        contexts: what the passes are conditioned by; keys and values are computed here, once.
    """
    condition = flow.encode_condition(contexts.tokens, negative=contexts.negative)

    def evaluate(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
        passes = len(images) + unguided
        stacked = x.expand(passes, -1, -1)  # (1, N, C) -> (passes, N, C)
        # (passes, N, C); the sampler broadcasts their combination, (N, C), against x
        return flow(stacked, voxels, model_time(t, x), condition.select(images, unguided=unguided))

    return evaluate


def one_pass_at_a_time(evaluate: Evaluate) -> Evaluate:
    """Return the same velocities with less memory: each pass is a batch of its own."""

    def separately(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
        passes = [evaluate(x, t, [image], False) for image in images]
        return torch.cat([*passes, *([evaluate(x, t, [], True)] if unguided else [])])

    return separately
