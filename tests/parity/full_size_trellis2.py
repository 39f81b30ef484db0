"""Random weights of TRELLIS.2's released sizes, one network at a time: loaded strictly, compared, then spoilt.

Takes 3.9 GB in a temporary folder, 9 GB of memory and some minutes, so no default test runs it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.engines.trellis2.models import ENCODER, Models
from pipeline.engines.trellis2.spec import RELEASED
from pipeline.engines.trellis2.weights import ENCODER_FOLDER, encoder_key, manifest
from pipeline.errors import WeightsUnusable
from pipeline.nn.checkpoint import TORCH_DTYPES
from pipeline.nn.tensor_files import Entry
from tests.fakes.sparse_files import spoilt, write_sparse

CPU = torch.device("cpu")
BLOCK = 1_000_003
"""Weights repeat a block of random numbers: filling 16 GB from a generator would take most of the time."""


def block_tensors(entries: dict[str, Entry], *, seed: int) -> dict[str, torch.Tensor]:
    """Tensors of other values each, cut from one random block."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).mul_(0.02)
    made = {}
    for number, (key, entry) in enumerate(entries.items()):
        count = int(torch.tensor(entry.shape).prod())
        repeats = -(-(count + number) // BLOCK)
        values = block.to(TORCH_DTYPES[entry.dtype]).repeat(repeats)[number : number + count]
        made[key] = values.clone().view(entry.shape)
    return made


def loaded_state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """What a network holds after the load that an engine does, in float32; raises `WeightsUnusable`."""
    models = Models(RELEASED, folder, device=CPU, dtype=torch.bfloat16)
    if name == ENCODER:
        models.load(())
        return models.use(ENCODER).model.state_dict()
    models.load((name,))
    return models.use(name).state_dict()


def refused(folder: Path, name: str) -> str:
    """The message of a refusal to load; empty if loading succeeds."""
    try:
        loaded_state(folder, name)
    except WeightsUnusable as error:
        return str(error)
    return ""


def check_network(folder: Path, name: str, *, seed: int) -> tuple[int, int]:
    """Write, load, compare and spoil one file; returns how many checks were made and how many failed."""
    is_encoder = name == ENCODER
    encoder_file = f"{ENCODER_FOLDER}/{RELEASED.encoder.file_name}"
    path = folder / (encoder_file if is_encoder else RELEASED.checkpoints[name].file_name)
    entries = manifest(ENCODER if is_encoder else path.stem)
    state = block_tensors(entries, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"format": "pt"} if is_encoder else None)
    published = RELEASED.encoder.size_bytes if is_encoder else RELEASED.checkpoints[name].size_bytes or 0
    size = path.stat().st_size
    # No size of the encoder's file is published: the spec has that of its tensors.
    failures = int(not (published <= size < published + 2e5 if is_encoder else size == published))
    started = time.perf_counter()
    found = loaded_state(folder, name)
    seconds = time.perf_counter() - started
    rounded = {key: value.to(found[encoder_key(key)].dtype) for key, value in state.items()}
    is_equal = all(torch.equal(found[encoder_key(key)], value) for key, value in rounded.items())
    failures += not is_equal
    print(f"{path.name}  {size} bytes, loaded strictly in {seconds:.1f} s, equal {is_equal}", flush=True)
    del state, rounded, found
    whole = path.rename(path.with_suffix(".whole"))
    messages = {}
    for fault, held in spoilt(entries).items():
        write_sparse(path, held, metadata=is_encoder)
        messages[fault] = refused(folder, name)
    write_sparse(path, entries, cut_bytes=1, metadata=is_encoder)
    messages["truncated"] = refused(folder, name)
    path.unlink()
    messages["absent"] = refused(folder, name)
    for fault, message in messages.items():
        print(f"  {fault:16s} {message or 'was accepted'}")
    whole.rename(path)
    return 2 + len(messages), failures + sum(not message for message in messages.values())


def run_trellis2() -> int:
    """Check the encoder and every network; returns the number of failures."""
    checks = failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, network in enumerate((ENCODER, *RELEASED.checkpoints)):
            made, failed = check_network(folder, network, seed=seed)
            checks, failures = checks + made, failures + failed
            if network != ENCODER:
                (folder / RELEASED.checkpoints[network].file_name).unlink()
    print(f"{checks - failures} passed, {failures} failed")
    return failures
