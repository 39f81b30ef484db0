"""The TripoSR engine: one view to a `Generation`, in one forward pass without sampling."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from pipeline.engines.memory_retry import smaller_chunk, with_memory_retry
from pipeline.engines.registry import TINY_WEIGHTS, find_spec
from pipeline.engines.triposr.colours import TriplaneColours
from pipeline.engines.triposr.field import TriplaneField
from pipeline.engines.triposr.model import TSR, load_model
from pipeline.engines.triposr.preprocess import composite_on_grey, frame_foreground, resize_images
from pipeline.engines.triposr.rendering import turntable_frames
from pipeline.engines.triposr.spec import FOREGROUND_RATIO, RELEASED, TINY, ModelSpec
from pipeline.engines.triposr.surface import extract_surface, to_mesh
from pipeline.engines.triposr.weights import WEIGHTS_FOLDER
from pipeline.errors import EngineFailed, InvalidRequest
from pipeline.ops.transfer import to_device, to_host

AFTER_ENCODING, AFTER_MESH = 0.7, 0.9
"""Fraction of the work done after each part; a turntable, if requested, takes the rest."""


class TripoSREngine:
    """The released model, or a tiny model of the same structure with deterministic test weights."""

    name = "triposr"

    def __init__(self, *, weights: Path | str, device: str | None = None) -> None:
        """Store the configuration; reads no file and uses no accelerator.

        Args:
            weights: the folder that `fetch-weights` filled, or "tiny".
            device: such as `cuda:0`; by default a GPU if there is one.
        """
        tiny = weights == TINY_WEIGHTS
        self.spec: ModelSpec = TINY if tiny else RELEASED
        self.folder = None if tiny else Path(weights) / WEIGHTS_FOLDER
        self._wanted_device = device
        self._model: TSR | None = None
        self._is_ready = False

    @property
    def is_on_accelerator(self) -> bool:
        """See `Engine.is_on_accelerator`."""
        return self._model is not None and self._device_of(self._model).type == "cuda"

    def load(self) -> None:
        """Read or create the weights, move them to the device, and warm up; see `Engine.load`."""
        self.load_weights()
        self.to_device()

    def load_weights(self) -> None:
        """Read the weights to host memory, the first half of `load`; uses no accelerator.

        Raises:
            WeightsUnusable: the checkpoint is missing or does not match the model.
        """
        if self._model is None:
            self._model = load_model(self.spec, self.folder)

    def to_device(self, device: str | None = None) -> None:
        """Choose the device, move the weights there and warm up: the second half of `load`.

        Args:
            device: overrides the device given to the constructor.

        Raises:
            RuntimeError: `load_weights` has not been called.
        """
        if self._is_ready and device is None:
            return
        if self._model is None:
            raise RuntimeError("call load_weights before to_device")
        self._wanted_device = device or self._wanted_device
        chosen = torch.device(self._wanted_device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model.to(chosen)
        if chosen.type != "cpu":  # a CPU has no kernels to select and no libraries to initialise
            self._warm_up(chosen)
        self._is_ready = True

    @staticmethod
    def _device_of(model: TSR) -> torch.device:
        return model.decoder.linears[0].weight.device

    def _warm_up(self, device: torch.device) -> None:
        assert self._model is not None
        size = self.spec.cond_image_size
        with torch.inference_mode():
            field = self._model.field(self._model(torch.full((1, size, size, 3), 0.5, device=device))[0])
            extract_surface(field, resolution=64, chunk_size=8192)

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        """Turn one view of a subject into a `Generation`; see `Engine.generate`.

        Args:
            views: exactly one foreground image, (H, W, 4).
            options: of the request.
            on_step: receives the progress.

        Raises:
            InvalidRequest: there is not exactly one view.
            UnreadableImage: the view holds no subject.
            EngineFailed: the model produced no surface.
            OutOfMemory: the device has too little memory, even for smaller chunks.
        """
        if len(views) != 1:
            raise InvalidRequest(f"engine {self.name} takes one view, got {len(views)}")
        self.load()
        assert self._model is not None
        image = composite_on_grey(frame_foreground(views[0], ratio=options.foreground_ratio or FOREGROUND_RATIO))
        device = self._device_of(self._model)
        run = _GenerationRun(self.spec, self._model, device, options, on_step)
        smaller = replace(options, chunk_size=smaller_chunk(options.chunk_size))
        started = time.perf_counter()
        with torch.inference_mode():
            generation = with_memory_retry(
                lambda: run.run(image),
                lambda: replace(run, options=smaller).run(image),
                device=device,
                tried=f"even for {smaller.chunk_size} points at a time",
            )
        if not self.is_on_accelerator:
            return generation
        torch.cuda.synchronize(device)
        return replace(generation, gpu_seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class _GenerationRun:
    """One generation: the model, its device and the options of the request."""

    spec: ModelSpec
    model: TSR
    device: torch.device
    options: GenerationOptions
    on_step: OnStep

    def run(self, image: NDArray[np.uint8]) -> Generation:
        """Turn a framed (S, S, 3) image into a generation."""
        field = self.model.field(self._encode(image))
        self.on_step(AFTER_ENCODING)
        resolution, chunk_size = self.options.resolution, self.options.chunk_size
        surface = extract_surface(field, resolution=resolution, chunk_size=chunk_size, is_closed=True)
        if len(surface.faces) == 0:
            raise EngineFailed("the model produced no surface for this image")
        mesh = to_mesh(surface, resolution=resolution)
        self.on_step(AFTER_MESH)
        turntable = self._turntable(field) if self.options.render else None
        self.on_step(1.0)
        return Generation(
            mesh=mesh,
            attribute_source=colours_of(field),
            engine=TripoSREngine.name,
            seed=self.options.seed,
            turntable_mp4=turntable,
            warnings=ignored_options("TripoSR", self.options, find_spec(TripoSREngine.name).ignores),
        )

    def _encode(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """Return the scene code of an image: (S, S, 3) uint8 -> (3, C, T, T)."""
        resized = resize_images(to_device(torch.from_numpy(image)[None], self.device), size=self.spec.cond_image_size)
        blocks = self.spec.backbone.num_layers
        return self.model(resized, on_block=lambda done: self.on_step(AFTER_ENCODING * done / (blocks + 1)))[0]

    def _turntable(self, field: TriplaneField) -> bytes:
        from pipeline.formats.mp4 import encode_mp4

        spec = self.spec
        share = (1 - AFTER_MESH) / spec.turntable_frames
        frames = turntable_frames(
            field,
            frames=spec.turntable_frames,
            size=spec.turntable_size,
            chunk_size=self.options.chunk_size,
            on_frame=lambda frame: self.on_step(AFTER_MESH + share * frame),
        )
        return encode_mp4(frames, fps=spec.turntable_fps, width=spec.turntable_size, height=spec.turntable_size)


def colours_of(field: TriplaneField) -> TriplaneColours:
    """Return the colour source of a field, which needs no torch."""

    wanted = [field.table, field.bias]
    for weight, bias in field.layers:
        wanted += [weight, weight.new_zeros(len(weight)) if bias is None else bias]
    table, first_bias, *rest = (tensor.numpy() for tensor in to_host(*(tensor.float() for tensor in wanted)))
    layers = list(zip(rest[::2], rest[1::2], strict=True))
    weight, bias = layers[-1]
    layers[-1] = (weight[1:], bias[1:])  # the first output is the density
    return TriplaneColours(
        table=table,
        size=field.size,
        first_bias=first_bias,
        layers=tuple(layers),
        activation=field.decoder_activation,
    )
