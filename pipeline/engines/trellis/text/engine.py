"""The TRELLIS-text engine: a prompt to a `Generation`, or a given shape and a prompt to a variant of that shape.

Encodes the prompt, samples the occupied voxels unless they are given, samples their latents, and decodes the latents
as the TRELLIS engine does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.engines.base import (
    ForegroundImage,
    Generation,
    GenerationOptions,
    OnStep,
    ignore_steps,
    ignored_options,
)
from pipeline.engines.registry import TINY_WEIGHTS, find_spec
from pipeline.engines.trellis.generation_run import GenerationRun
from pipeline.engines.trellis.models import Models
from pipeline.engines.trellis.sampling_engine import SamplingEngine
from pipeline.engines.trellis.text.encoder import TextEncoder
from pipeline.engines.trellis.text.spec import SIZES, TINY_TEXT
from pipeline.engines.trellis.text.tokenizer import CONTEXT_LENGTH, TokenizedPrompt
from pipeline.engines.trellis.text.weights import chosen_size
from pipeline.engines.trellis.weights import WEIGHTS_FOLDER
from pipeline.errors import InvalidRequest
from pipeline.mesh.voxelize import VOXEL_RESOLUTION
from pipeline.ops.voxels import VoxelSet
from pipeline.sampling.contexts import Contexts

QUOTED_CHARS = 80
"""How much of an unread end of a prompt a warning quotes."""


class TrellisTextEngine(SamplingEngine):
    """A released text model, or a tiny model of the same structure with deterministic test weights."""

    name = "trellis-text"

    def __init__(
        self, *, weights: Path | str, device: str | None = None, dtype: str | None = None, size: str | None = None
    ) -> None:
        """Store the configuration; uses no accelerator.

        Args:
            weights: the folder that `fetch-weights` filled, or "tiny".
            device: see `SamplingEngine`.
            dtype: see `SamplingEngine`; the text tower is always float32.
            size: `base`, `large` or `xlarge`; by default the largest one whose files are there.

        Raises:
            InvalidRequest: unknown precision or size.
        """
        tiny = weights == TINY_WEIGHTS
        spec = TINY_TEXT if tiny else SIZES[chosen_size(Path(weights), size)]
        super().__init__(spec, None if tiny else Path(weights) / WEIGHTS_FOLDER, device=device, dtype=dtype)
        self._null_context: torch.Tensor | None = None

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        """Turn a prompt into a `Generation`; see `Engine.generate`.

        Args:
            views: none.
            options: of the request, with a `prompt`.
            on_step: receives the progress.

        Raises:
            InvalidRequest: there is no prompt, or there are views.
            EngineFailed: the model produced no voxel or no surface.
            OutOfMemory: the device has too little memory, even for the retry.
        """
        if views or options.prompt is None:
            raise InvalidRequest(f"engine {self.name} takes a text and no image")
        self.load()
        assert self._models is not None
        models = self._models
        encoder = _encoder(models)
        texts = [options.prompt, *filter(None, [options.negative_prompt])]
        tokenized = [encoder.tokenizer.tokenize(text) for text in texts]
        ids = [each.ids[None].to(models.device) for each in tokenized]  # (1, 77) each

        def encode() -> Contexts:
            assert self._null_context is not None
            return Contexts(encoder(ids[0]), encoder(ids[1]) if len(ids) > 1 else self._null_context)

        voxels = None
        if options.init_voxels is not None:
            voxels = _given_voxels(options.init_voxels, side=models.latent_flow.resolution).to(models.device)
        run = GenerationRun(self.name, self.spec, models, models.device, options, "stochastic", on_step)
        generation = self._run(run, encode, None if voxels is None else VoxelSet(voxels, batch_size=1))
        names = ("prompt", "negative_prompt")
        unread = [_unread_notice(name, text) for name, text in zip(names, tokenized, strict=False) if text.unread]
        ignored = ignored_options("TRELLIS-text", options, find_spec(self.name).ignores)
        return replace(generation, warnings=(*unread, *ignored, *generation.warnings))

    def _prepare(self, models: Models) -> None:
        with torch.inference_mode():
            self._null_context = _encoder(models).encode([""])  # of every generation without a negative prompt

    def _small_contexts(self, models: Models) -> Contexts:
        tokens = _encoder(models).encode(["a grey ball"])
        assert self._null_context is not None
        return Contexts(tokens, self._null_context)


def _encoder(models: Models) -> TextEncoder:
    assert isinstance(models.encoder, TextEncoder)
    return models.encoder


def _given_voxels(voxels: NDArray[np.uint8], *, side: int) -> torch.Tensor:
    """Return the voxels of a given shape on a grid of `side` cells: (N, 3) -> (M, 4), sorted."""
    coords = torch.from_numpy(voxels.astype(np.int32))
    coords = torch.unique(torch.div(coords * side, VOXEL_RESOLUTION, rounding_mode="floor"), dim=0)
    return torch.cat([torch.zeros_like(coords[:, :1]), coords], dim=1).int()


def _unread_notice(field: str, text: TokenizedPrompt) -> str:
    quoted = text.unread if len(text.unread) <= QUOTED_CHARS else f"{text.unread[: QUOTED_CHARS - 1]}…"
    return (
        f"The model reads the first {CONTEXT_LENGTH - 2} tokens of {field}, which has {text.tokens}; this end of it "
        f"had no effect: “{quoted}”."
    )
