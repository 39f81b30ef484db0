"""A whole set of weights of the released sizes, filled at random: written once, loaded strictly, then spoilt.

Takes 4.2 GB in a temporary folder and a minute, so no default test runs it.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.engines.trellis.models import load_models
from pipeline.engines.trellis.spec import IMAGE_LARGE
from pipeline.engines.trellis.weights import ENCODER_FOLDER, check_weights, manifest
from pipeline.engines.triposr import weights as triposr
from pipeline.engines.triposr.model import load_model as load_triposr
from pipeline.engines.triposr.spec import RELEASED
from pipeline.errors import WeightsUnusable
from pipeline.nn.checkpoint import TORCH_DTYPES
from pipeline.nn.tensor_files import Entry

SPOILT = IMAGE_LARGE.structure_decoder.file_name  # the smallest of the six


def random_tensors(entries: dict[str, Entry], *, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(entry.shape, generator=generator).mul_(0.02).to(TORCH_DTYPES[entry.dtype])
        for key, entry in entries.items()
    }


def write_set(folder: Path) -> int:
    """Write all files; returns their size in bytes."""
    paths = [folder / checkpoint.file_name for checkpoint in IMAGE_LARGE.checkpoints.values()]
    paths.append(folder / ENCODER_FOLDER / IMAGE_LARGE.encoder.file_name)
    for seed, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        name = "encoder" if path.parent.name == ENCODER_FOLDER else path.stem
        metadata = {"format": "pt"} if name == "encoder" else None  # as the published files have it
        save_file(random_tensors(manifest(name), seed=seed), path, metadata=metadata)
    return sum(path.stat().st_size for path in paths)


@contextmanager
def spoilt(path: Path) -> Iterator[None]:
    kept = path.with_suffix(".kept")
    shutil.copy(path, kept)
    yield
    kept.replace(path)


def refusal(folder: Path) -> str:
    """What loading says; empty where it goes through."""
    try:
        load_models(IMAGE_LARGE, folder, device=torch.device("cpu"), dtype=torch.float16)
    except WeightsUnusable as error:
        return str(error)
    return ""


def spoil_each_way(folder: Path) -> int:
    """Truncate, rename, add, reshape, remove: prints each refusal; returns how many went through."""
    path, accepted = folder / SPOILT, 0
    entries = manifest(path.stem)
    first = next(iter(entries))
    reshaped = entries | {first: Entry(entries[first].dtype, (1, *entries[first].shape))}
    renamed = {("renamed" if key == first else key): entry for key, entry in entries.items()}
    surplus = entries | {"surplus": Entry("F32", (1,))}
    for way, kind in {
        "renamed": renamed,
        "surplus": surplus,
        "reshaped": reshaped,
        "truncated": None,
        "missing": {},
    }.items():
        with spoilt(path):
            if kind is None:
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size // 2)
            elif kind:
                save_file(random_tensors(kind, seed=0), path)
            else:
                path.unlink()
            said = refusal(folder)
        accepted += not said
        print(f"{way:10s} {said or 'was accepted'}")
    return accepted


def run_full_size() -> int:
    """Print seconds and sizes of all models; returns how many things went wrong."""
    return run_trellis() + run_triposr()


def run_triposr() -> int:
    """A pickle of the released layout: converted, loaded strictly, and refused once it is spoilt."""
    entries = triposr.manifest()
    with tempfile.TemporaryDirectory() as name:
        pickled, target = Path(name) / RELEASED.file_name, Path(name) / triposr.FILE_NAME
        state = OrderedDict(random_tensors(entries, seed=0))
        torch.save(state, pickled)
        started = time.perf_counter()
        triposr.convert_checkpoint(pickled, target)
        print(f"{pickled.stat().st_size} bytes pickled, converted in {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()
        model = load_triposr(RELEASED, Path(name))
        print(f"loaded strictly in {time.perf_counter() - started:.1f} s")
        loaded = model.state_dict()
        wrong = int(not all(torch.equal(loaded[key], tensor) for key, tensor in state.items()))
        target.unlink()
        state.popitem()
        torch.save(state, pickled)
        try:
            triposr.convert_checkpoint(pickled, target)
            wrong += 1
        except WeightsUnusable as error:
            print(f"missing    {error}")
    print(f"{2 - wrong} passed, {wrong} failed")
    return wrong


def run_trellis() -> int:
    """Six files of the released sizes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_set(folder)
        check_weights(folder)  # the published sizes, to the byte
        print(f"{size / 1e9:.2f} GB written, sizes as published")
        started = time.perf_counter()
        models = load_models(IMAGE_LARGE, folder, device=torch.device("cpu"), dtype=torch.float16)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"loaded strictly in {time.perf_counter() - started:.1f} s, peak {peak:.1f} GB resident")
        assert not any(p.is_meta for part in vars(models).values() for p in part.parameters())
        del models
        wrong = spoil_each_way(folder)
    print(f"{6 - wrong} passed, {wrong} failed")
    return wrong
