"""What the TRELLIS engines share: loading in one or two steps, device, precision, and a run with its memory retry."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.engines.base import Generation
from pipeline.engines.trellis.cuda_warm_up import warm_up_cuda
from pipeline.engines.trellis.generation_run import Encode, GenerationRun
from pipeline.engines.trellis.models import Models, load_models
from pipeline.engines.trellis.spec import ModelSpec
from pipeline.errors import OutOfMemory
from pipeline.nn.precision import device_of, precision_of
from pipeline.ops.kernels.dispatch import KERNELS
from pipeline.ops.voxels import VoxelSet
from pipeline.sampling.contexts import Contexts

CPU = torch.device("cpu")
RETRY_CHUNK_DIVISOR = 4  # after an out-of-memory error, chunks shrink by this factor and passes run one by one


class SamplingEngine(ABC):
    """The part of a TRELLIS engine that does not depend on what the model is conditioned by."""

    def __init__(self, spec: ModelSpec, folder: Path | None, *, device: str | None, dtype: str | None) -> None:
        """Store the configuration; reads no file and uses no accelerator.

        Args:
            spec: the model.
            folder: of its weights; None for deterministic test weights.
            device: such as `cuda:0`; by default a GPU if there is one.
            dtype: precision inside the heavy blocks: `float16` as in the release, `bfloat16` or `float32`; by default
                `float16` on a GPU and `float32` on a CPU.

        Raises:
            InvalidRequest: unknown precision.
        """
        self.spec = spec
        self.folder = folder
        self._wanted_device = device
        self._wanted_dtype = precision_of(dtype)
        self._models: Models | None = None
        self._is_ready = False

    @property
    def is_on_accelerator(self) -> bool:
        """See `Engine.is_on_accelerator`."""
        return self._models is not None and self._models.device.type == "cuda"

    def load(self) -> None:
        """Read or create the weights directly on the device, and warm up; see `Engine.load`."""
        if self._models is None:
            device = device_of(self._wanted_device)
            self._models = load_models(self.spec, self.folder, device=device, dtype=self._dtype_on(device))
        self.to_device()

    def load_weights(self) -> None:
        """Read the weights to host memory in their stored types: the first half of a split `load`.

        Uses no accelerator and keeps no dependence on the files, so that a snapshot of the process can be taken
        afterwards.

        Raises:
            WeightsUnusable: a checkpoint is missing or does not match the model.
        """
        if self._models is None:
            self._models = load_models(self.spec, self.folder, device=CPU, dtype=None)

    def to_device(self, device: str | None = None) -> None:
        """Choose the device, move the weights there in its precision and warm up: the second half of a split `load`.

        Args:
            device: overrides the device given to the constructor.

        Raises:
            RuntimeError: `load_weights` has not been called.
        """
        if self._is_ready and device is None:
            return
        if self._models is None:
            raise RuntimeError("call load_weights before to_device")
        self._wanted_device = device or self._wanted_device
        chosen = device_of(self._wanted_device)
        self._models.move_to(chosen, dtype=self._dtype_on(chosen))
        self._prepare(self._models)
        if chosen.type != "cpu":  # a CPU has no kernels to select and no libraries to initialise
            models = self._models
            warm_up_cuda(models, chosen, lambda: self._small_contexts(models))
        self._is_ready = True

    def _dtype_on(self, device: torch.device) -> torch.dtype:
        return self._wanted_dtype or (torch.float16 if device.type == "cuda" else torch.float32)

    @abstractmethod
    def _prepare(self, models: Models) -> None:
        """Compute what every generation uses, after the weights have reached their device."""

    @abstractmethod
    def _small_contexts(self, models: Models) -> Contexts:
        """Encode a small input, to warm up."""

    def _run(self, run: GenerationRun, encode: Encode, voxels: VoxelSet | None = None) -> Generation:
        """Run a generation, again with less memory if the device has too little, and measure it.

        Raises:
            EngineFailed: the model produced no voxel or no surface.
            OutOfMemory: the device has too little memory, even for the retry.
        """
        started = time.perf_counter()
        with torch.inference_mode():
            try:
                generation = run.generate(encode, voxels)
            except torch.cuda.OutOfMemoryError:
                generation = _retry_with_less_memory(run, encode, voxels)
        if not self.is_on_accelerator:
            return generation
        torch.cuda.synchronize(run.device)
        gpu_seconds = time.perf_counter() - started
        return replace(generation, gpu_seconds=gpu_seconds, kernel_fallbacks=KERNELS.failed)


def _retry_with_less_memory(run: GenerationRun, encode: Encode, voxels: VoxelSet | None) -> Generation:
    torch.cuda.empty_cache()
    options = replace(run.options, chunk_size=max(1, run.options.chunk_size // RETRY_CHUNK_DIVISOR))
    try:
        return replace(run, options=options, one_by_one=True).generate(encode, voxels)
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        free, total = (size / 1e9 for size in torch.cuda.mem_get_info(run.device))
        raise OutOfMemory(
            f"the device has too little memory, even for one pass at a time: {free:.1f} of {total:.1f} GB are free"
        ) from error
