"""Reads golden fixtures, compares the outputs of the modules with them, and prints one line each.

Knows the format of the kits and no model: a registry maps the `spec.target` of a fixture to a check.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KITS = Path(__file__).resolve().parents[2].parent / "shared"
"""Folder of the shared kits, next to the checkout."""

MAX_ABS_GUARD = 1e-4  # second bound of the kits: max_abs <= 1e-4 * max(1, rms)
DEFAULT_TOLERANCE = 1e-5  # of fixtures that no index.json lists


@dataclass(frozen=True, eq=False)
class Fixture:
    """One golden case.

    Attributes:
        spec: what to build and how.
        inputs: arrays by name; arrays that the spec describes by a rule are generated.
        golden: expected arrays by name.
        tolerance: bound of the relative L2 distance of each output.
        max_abs: bound of the largest difference, or None for `MAX_ABS_GUARD * max(1, rms)`.
    """

    name: str
    spec: dict[str, Any]
    inputs: dict[str, NDArray[Any]]
    golden: dict[str, NDArray[Any]]
    tolerance: float
    max_abs: float | None

    @property
    def target(self) -> str:
        return self.spec["target"]

    @property
    def args(self) -> dict[str, Any]:
        return dict(self.spec.get("args") or {})


@dataclass(frozen=True)
class Deviation:
    """The distance of one output from its golden array.

    Attributes:
        output: name of the output.
        rel_l2: relative L2 distance.
        ok: whether it is within the bounds.
        remark: what is wrong; empty if nothing is.
    """

    output: str
    rel_l2: float
    ok: bool
    remark: str = ""


@dataclass(frozen=True)
class Verdict:
    """The result of one fixture, determined by its worst output."""

    fixture: str
    worst: float
    tolerance: float
    ok: bool
    seconds: float
    remark: str = ""

    def line(self) -> str:
        """Return one line: name, worst relative L2, tolerance, ok."""
        state = "ok" if self.ok else "FAILED"
        text = f"{self.fixture:48s} {self.worst:9.2e} {self.tolerance:8.1e} {state:6s} {self.seconds:6.2f} s"
        return f"{text}  {self.remark}".rstrip()


Check = Callable[[Fixture], list[Deviation]]


# -- reading ----------------------------------------------------------------------------------------------------------


def fixture_paths(folder: Path) -> list[Path]:
    """Return the fixtures of a folder, without its subfolders, sorted by name."""
    return sorted(folder.glob("*.npz"))


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of index.json by file name; empty if the folder has none."""
    path = folder / "index.json"
    return {row["file"]: row for row in json.loads(path.read_text())} if path.is_file() else {}


def read_fixture(path: Path) -> Fixture:
    """Read one .npz with its tolerances from the index.json beside it."""
    row = read_index(path.parent).get(path.name, {})
    with np.load(path) as archive:
        spec = json.loads(str(archive["spec"]))
        arrays = {key: archive[key] for key in archive.files if key != "spec"}
    tolerance = row.get("tolerance_rel_l2", (spec.get("tolerance") or {}).get("rel_l2", DEFAULT_TOLERANCE))
    inputs = {key[3:]: value for key, value in arrays.items() if key.startswith("in.")}
    return Fixture(
        name=path.stem,
        spec=spec,
        inputs={**generated_inputs(spec), **inputs},
        golden={key[4:]: value for key, value in arrays.items() if key.startswith("out.")},
        tolerance=float(tolerance),
        max_abs=row.get("tolerance_max_abs", (spec.get("tolerance") or {}).get("max_abs")),
    )


def generated_inputs(spec: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Generate the inputs that a spec describes by the normal rule; other rules belong to their targets."""
    inputs: dict[str, NDArray[Any]] = {}
    rules = spec.get("inputs_generated") or {}
    if isinstance(rules, list):
        rules = {rule["name"]: rule for rule in rules}
    for name, rule in rules.items():
        if isinstance(rule, dict) and "shape" in rule and rule.get("rule", "rnd") == "rnd":
            seed = rule.get("seed", spec.get("seed"))
            inputs[name] = rnd(seed, rule.get("name", name), tuple(rule["shape"]), scale=rule.get("scale", 1.0))
    return inputs


def rnd(seed: int, name: str, shape: tuple[int, ...], *, scale: float = 1.0) -> NDArray[np.float32]:
    """Return the normally distributed inputs of the kits, seeded by a number and the crc32 of a name."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.standard_normal(shape).astype(np.float32) * np.float32(scale)


# -- comparing --------------------------------------------------------------------------------------------------------


def compare(
    output: str, computed: NDArray[Any], golden: NDArray[Any], *, tolerance: float, max_abs: float | None = None
) -> Deviation:
    """Compare two arrays: integers exactly, floats by relative L2 and by the largest difference.

    Args:
        max_abs: bound of the largest difference; None for `MAX_ABS_GUARD * max(1, rms of golden)`.
    """
    computed = np.asarray(computed)
    if computed.shape != golden.shape:
        return Deviation(output, math.inf, False, f"{output}: shape {computed.shape}, expected {golden.shape}")
    if golden.size == 0:
        return Deviation(output, 0.0, True)
    difference = computed.astype(np.float64) - golden.astype(np.float64)
    if not np.isfinite(difference).all():
        return Deviation(output, math.inf, False, f"{output}: not finite")
    norm = float(np.linalg.norm(golden.astype(np.float64)))
    rel_l2 = float(np.linalg.norm(difference)) / norm if norm else float(np.abs(difference).max())
    if golden.dtype.kind in "iub":
        wrong = int(np.count_nonzero(difference))
        return Deviation(output, rel_l2, wrong == 0, f"{output}: {wrong} of {golden.size} differ" if wrong else "")
    largest = float(np.abs(difference).max())
    bound = MAX_ABS_GUARD * max(1.0, norm / math.sqrt(golden.size)) if max_abs is None else max_abs
    if largest > bound:
        return Deviation(output, rel_l2, False, f"{output}: largest difference {largest:.1e} over {bound:.1e}")
    ok = rel_l2 <= tolerance
    return Deviation(output, rel_l2, ok, "" if ok else f"{output}: relative L2 {rel_l2:.1e}")


def compare_outputs(fixture: Fixture, computed: Mapping[str, NDArray[Any]]) -> list[Deviation]:
    """Compare every golden output; a missing output is a deviation.

    If the fixture stores only a part of an output, some rows (`rows`) or every n-th entry, that is compared, and its
    `full_stats` are compared with the statistics of the whole array.
    """
    deviations = []
    rows = fixture.golden.get("rows")
    for name, golden in fixture.golden.items():
        if name == "rows":
            continue
        if name not in computed:
            deviations.append(Deviation(name, math.inf, False, f"{name}: not computed"))
            continue
        array = _stored_part(np.asarray(computed[name]), golden, rows)
        deviations.append(compare(name, array, golden, tolerance=fixture.tolerance, max_abs=fixture.max_abs))
    for name, stats in (fixture.spec.get("full_stats") or {}).items():
        if name in computed:
            deviations.append(compare_stats(name, np.asarray(computed[name]), stats, tolerance=fixture.tolerance))
    return deviations


def _stored_part(array: NDArray[Any], golden: NDArray[Any], rows: NDArray[np.integer[Any]] | None) -> NDArray[Any]:
    """What a fixture stores of a large array: some rows, or every n-th entry along some axes.

    The `full_stats` of such a fixture check the other entries. Integers, such as voxels, are always stored whole.
    """
    if array.shape == golden.shape or array.ndim != golden.ndim or golden.size == 0 or golden.dtype.kind != "f":
        return array
    if rows is not None:
        return array[rows]
    steps = (-(-whole // stored) for whole, stored in zip(array.shape, golden.shape, strict=True))
    part = array[tuple(slice(None, None, step) for step in steps)]
    return part if part.shape == golden.shape else array  # an array of a wrong shape is reported with its own


def compare_stats(output: str, computed: NDArray[Any], stats: Mapping[str, Any], *, tolerance: float) -> Deviation:
    """Compare mean, std, l2, absmax and sum_cos of a complete array with those of the golden run.

    The bounds follow from a relative L2 distance of `tolerance`: a difference d of norm tolerance * l2 moves the mean
    by at most |d| / sqrt(n), and the sums by at most |d| * sqrt(n) (in practice by |d|; the bound is ten times that).
    """
    if list(computed.shape) != list(stats["shape"]):
        return Deviation(output, math.inf, False, f"{output}: full shape {computed.shape}, expected {stats['shape']}")
    values = computed.astype(np.float64).ravel()
    found = {
        "mean": values.mean(),
        "std": values.std(),
        "l2": np.linalg.norm(values),
        "absmax": np.abs(values).max(),
        "sum_cos": np.sum(values * np.cos(0.001 * np.arange(values.size))),
    }
    allowed = tolerance * stats["l2"]
    per_entry = max(allowed / math.sqrt(values.size), 1e-12)
    bounds = {"mean": per_entry, "std": per_entry, "l2": allowed, "absmax": MAX_ABS_GUARD, "sum_cos": 10 * allowed}
    bounds["absmax"] *= max(1.0, stats["absmax"])
    for name, value in found.items():
        if abs(value - stats[name]) > bounds[name]:
            return Deviation(output, 0.0, False, f"{output}: {name} of the whole is {value}, expected {stats[name]}")
    return Deviation(output, 0.0, True)


# -- running ----------------------------------------------------------------------------------------------------------


def run_fixture(path: Path, targets: Mapping[str, Check]) -> Verdict:
    """Run one fixture; an unknown target or an exception is a failure."""
    fixture = read_fixture(path)
    started = time.perf_counter()
    try:
        check = targets.get(fixture.target)
        if check is None:
            raise LookupError(f"no check for target {fixture.target!r}")
        deviations = check(fixture)
        if not deviations:
            raise ValueError("the check compared nothing")
    except Exception as error:  # a fixture that fails to run is reported like one that differs
        deviations = [Deviation("", math.inf, False, f"{type(error).__name__}: {error}")]
    return Verdict(
        fixture=fixture.name,
        worst=max(deviation.rel_l2 for deviation in deviations),
        tolerance=fixture.tolerance,
        ok=all(deviation.ok for deviation in deviations),
        seconds=time.perf_counter() - started,
        remark="; ".join(deviation.remark for deviation in deviations if deviation.remark),
    )


def run_folders(folders: Iterable[Path], targets: Mapping[str, Check], *, only_known: bool = False) -> int:
    """Run every fixture of the folders; print one line each and the totals.

    Args:
        targets: checks by target.
        only_known: leave out the fixtures of other targets, which otherwise fail.

    Returns:
        The number of failures; an empty folder counts as one.
    """
    passed = failed = 0
    for folder in folders:
        paths = fixture_paths(folder)
        if not paths:
            print(f"{folder}: no fixture found")
            failed += 1
        if only_known:
            paths = [path for path in paths if read_fixture(path).target in targets]
        for path in paths:
            verdict = run_fixture(path, targets)
            print(verdict.line(), flush=True)
            passed, failed = passed + verdict.ok, failed + (not verdict.ok)
    print(f"{passed} passed, {failed} failed")
    return failed
