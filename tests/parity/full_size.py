"""Random weights of the released sizes: written once, loaded strictly, then corrupted in several ways.

Takes 4.2 GB in a temporary folder and some minutes, so no default test runs it.
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

from pipeline.engines.trellis.models import _load_part, load_models
from pipeline.engines.trellis.spec import IMAGE_LARGE
from pipeline.engines.trellis.text.encoder import TOWER, load_text_encoder
from pipeline.engines.trellis.text.spec import CLIP_LARGE, SIZES
from pipeline.engines.trellis.text.tokenizer import VOCABULARY_FILES
from pipeline.engines.trellis.weights import ENCODER_FOLDER, check_weights, manifest
from pipeline.engines.triposr import weights as triposr
from pipeline.engines.triposr.model import load_model as load_triposr
from pipeline.engines.triposr.spec import RELEASED
from pipeline.errors import WeightsUnusable
from pipeline.nn.checkpoint import TORCH_DTYPES
from pipeline.nn.tensor_files import Entry
from tests.fakes.clip_vocabulary import vocabulary_folder
from tests.parity.full_size_trellis2 import run_trellis2

CORRUPTED = IMAGE_LARGE.structure_decoder.file_name  # the smallest of the six


def random_tensors(entries: dict[str, Entry], *, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(entry.shape, generator=generator).mul_(0.02).to(TORCH_DTYPES[entry.dtype])
        for key, entry in entries.items()
    }


def write_set(folder: Path) -> int:
    """Write all files and return their size in bytes."""
    paths = [folder / checkpoint.file_name for checkpoint in IMAGE_LARGE.checkpoints.values()]
    paths.append(folder / ENCODER_FOLDER / IMAGE_LARGE.encoder.file_name)
    for seed, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        name = "encoder" if path.parent.name == ENCODER_FOLDER else path.stem
        metadata = {"format": "pt"} if name == "encoder" else None  # as the published files have it
        save_file(random_tensors(manifest(name), seed=seed), path, metadata=metadata)
    return sum(path.stat().st_size for path in paths)


@contextmanager
def restored_afterwards(path: Path) -> Iterator[None]:
    """Restore a file after the block."""
    kept = path.with_suffix(".kept")
    shutil.copy(path, kept)
    yield
    kept.replace(path)


def refusal(folder: Path) -> str:
    """Return the message of the refusal to load; empty if loading succeeds."""
    try:
        load_models(IMAGE_LARGE, folder, device=torch.device("cpu"), dtype=torch.float16)
    except WeightsUnusable as error:
        return str(error)
    return ""


def corrupt_in_every_way(folder: Path) -> int:
    """Truncate, rename, add, reshape and remove; print each refusal and return how many files were accepted."""
    path, accepted = folder / CORRUPTED, 0
    entries = manifest(path.stem)
    first = next(iter(entries))
    reshaped = entries | {first: Entry(entries[first].dtype, (1, *entries[first].shape))}
    renamed = {("renamed" if key == first else key): entry for key, entry in entries.items()}
    surplus = entries | {"surplus": Entry("F32", (1,))}
    for corruption, content in {
        "renamed": renamed,
        "surplus": surplus,
        "reshaped": reshaped,
        "truncated": None,
        "missing": {},
    }.items():
        with restored_afterwards(path):
            if content is None:
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size // 2)
            elif content:
                save_file(random_tensors(content, seed=0), path)
            else:
                path.unlink()
            message = refusal(folder)
        accepted += not message
        print(f"{corruption:10s} {message or 'was accepted'}")
    return accepted


def run_full_size() -> int:
    """Print seconds and sizes of all models and return the number of failures."""
    return run_trellis() + run_trellis_text() + run_triposr() + run_trellis2()


def run_triposr() -> int:
    """Convert and load a pickle of the released layout, and check that a corrupted one is refused."""
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


def run_trellis_text() -> int:
    """Load the largest text model's own networks of the released sizes, one file at a time, and corrupt each."""
    spec, device, wrong, checks = SIZES["xlarge"], torch.device("cpu"), 0, 0
    entries = {
        name: manifest(Path(spec.checkpoints[name].file_name).stem) for name in ("structure_flow", "latent_flow")
    }
    for seed, (name, expected) in enumerate(entries.items()):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / spec.checkpoints[name].file_name
            path.parent.mkdir()
            state = random_tensors(expected, seed=seed)
            save_file(state, path)
            size, started = path.stat().st_size, time.perf_counter()
            part = _load_part(spec, name, Path(folder), device, torch.float16)
            seconds = time.perf_counter() - started
            loaded = part.state_dict()
            is_equal = all(torch.equal(loaded[key], tensor.to(loaded[key].dtype)) for key, tensor in state.items())
            is_published = size == spec.checkpoints[name].size_bytes
            print(f"{path.name}  {size} bytes, loaded strictly in {seconds:.1f} s, equal {is_equal}")
            del part, loaded
            key, tensor = state.popitem()
            save_file({**state, f"{key}.renamed": tensor}, path)
            try:
                _load_part(spec, name, Path(folder), device, torch.float16)
                refused = False
            except WeightsUnusable as error:
                refused = True
                print(f"renamed    {error}")
            checks, wrong = checks + 3, wrong + (not is_equal) + (not is_published) + (not refused)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CLIP_LARGE.file_name
        state = random_tensors(manifest("text_encoder"), seed=9)
        save_file({**state, "vision_model.post_layernorm.bias": torch.zeros(1024)}, path, metadata={"format": "pt"})
        for name in VOCABULARY_FILES:
            shutil.copy(vocabulary_folder() / name, folder)
        encoder = load_text_encoder(CLIP_LARGE, Path(folder), device, copy=False)
        found = {TOWER + key: tensor for key, tensor in encoder.model.state_dict().items()}
        is_equal = all(torch.equal(found[key], tensor) for key, tensor in state.items())
        print(f"text tower {sum(tensor.numel() for tensor in state.values())} parameters, equal {is_equal}")
        checks, wrong = checks + 1, wrong + (not is_equal)
    print(f"{checks - wrong} passed, {wrong} failed")
    return wrong


def run_trellis() -> int:
    """Load six files of the released sizes, and check that corrupted ones are refused."""
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
        wrong = corrupt_in_every_way(folder)
    print(f"{6 - wrong} passed, {wrong} failed")
    return wrong
