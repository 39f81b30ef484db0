from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.harness import Deviation, Fixture, compare, compare_outputs, rnd, run_fixture, run_folders


def write_fixture(folder: Path, spec: Mapping[str, Any], **arrays: np.ndarray) -> Path:
    path = folder / "case.npz"
    named = {name.replace("__", "."): array for name, array in arrays.items()}
    np.savez(path, spec=np.array(json.dumps({"target": "Doubler", **spec})), **named)
    return path


def double(fixture: Fixture) -> list[Deviation]:
    return compare_outputs(fixture, {"y": fixture.inputs["x"] * 2})


def test_a_correct_output_passes_and_a_wrong_one_fails(tmp_path: Path) -> None:
    x = np.arange(1, 5, dtype=np.float32)

    right = run_fixture(write_fixture(tmp_path, {}, in__x=x, out__y=2 * x), {"Doubler": double})
    wrong = run_fixture(write_fixture(tmp_path, {}, in__x=x, out__y=2.001 * x), {"Doubler": double})

    assert right.ok
    assert not wrong.ok
    assert wrong.worst == pytest.approx(0.001 / 2.001, rel=1e-3)


def test_the_index_sets_the_tolerance(tmp_path: Path) -> None:
    x = np.arange(1, 5, dtype=np.float32)
    path = write_fixture(tmp_path, {}, in__x=x, out__y=(2 + 2e-5) * x)
    (tmp_path / "index.json").write_text(json.dumps([{"file": "case.npz", "tolerance_rel_l2": 1e-4}]))

    assert run_fixture(path, {"Doubler": double}).ok


@pytest.mark.parametrize("targets", [{}, {"Doubler": lambda fixture: []}, {"Doubler": lambda fixture: 1 / 0}])
def test_an_unknown_target_an_empty_check_and_an_exception_are_failures(tmp_path: Path, targets: dict) -> None:
    path = write_fixture(tmp_path, {}, out__y=np.ones(1, np.float32))

    assert not run_fixture(path, targets).ok


def test_a_missing_output_another_shape_and_a_nan_are_failures(tmp_path: Path) -> None:
    golden = np.ones(3, np.float32)

    assert not compare("y", np.ones(2), golden, tolerance=1.0).ok
    assert not compare("y", np.array([1, np.nan, 1]), golden, tolerance=1.0).ok
    path = write_fixture(tmp_path, {}, out__y=golden, out__z=golden)
    assert not run_fixture(path, {"Doubler": lambda f: compare_outputs(f, {"y": golden})}).ok


def test_integers_are_compared_exactly() -> None:
    golden = np.array([10**6, 2], np.int32)

    assert not compare("n", golden + np.array([1, 0]), golden, tolerance=1.0).ok


def test_one_large_difference_fails_even_where_the_norm_is_small() -> None:
    golden = np.ones(10**6, np.float32)
    computed = golden.copy()
    computed[5] += 2e-4

    assert not compare("y", computed, golden, tolerance=1e-5).ok


def test_rows_and_whole_array_statistics_are_compared(tmp_path: Path) -> None:
    x = rnd(1, "x", (6, 2))
    y = (2 * x).astype(np.float64)
    stats = {
        "shape": [6, 2],
        "mean": y.mean(),
        "std": y.std(),
        "l2": float(np.linalg.norm(y)),
        "absmax": np.abs(y).max(),
    }
    stats["sum_cos"] = float(np.sum(y.ravel() * np.cos(0.001 * np.arange(12))))
    rows = np.array([1, 4], np.int32)
    arrays = {"in__x": x, "out__y": 2 * x[rows], "out__rows": rows}

    good = run_fixture(write_fixture(tmp_path, {"full_stats": {"y": stats}}, **arrays), {"Doubler": double})
    stats["l2"] *= 1.01
    bad = run_fixture(write_fixture(tmp_path, {"full_stats": {"y": stats}}, **arrays), {"Doubler": double})

    assert good.ok, good.line()
    assert not bad.ok


def test_every_nth_entry_of_a_large_array_is_compared(tmp_path: Path) -> None:
    x = rnd(1, "x", (6, 7, 8))

    good = run_fixture(write_fixture(tmp_path, {}, in__x=x, out__y=2 * x[:, ::2, ::4]), {"Doubler": double})
    shifted = run_fixture(write_fixture(tmp_path, {}, in__x=x, out__y=2 * x[:, ::2, 1::4]), {"Doubler": double})

    assert good.ok, good.line()
    assert not shifted.ok


def test_generated_inputs_follow_the_rule(tmp_path: Path) -> None:
    spec = {"seed": 5, "inputs_generated": {"x": {"shape": [2, 3], "scale": 0.5}}}
    expected = np.random.default_rng([5, 2363233923]).standard_normal((2, 3)).astype(np.float32) * np.float32(0.5)

    verdict = run_fixture(write_fixture(tmp_path, spec, out__y=2 * expected), {"Doubler": double})

    assert verdict.ok, verdict.line()


def test_the_last_line_counts_and_an_empty_folder_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "empty").mkdir()
    write_fixture(tmp_path / "full", {}, in__x=np.ones(2, np.float32), out__y=np.full(2, 2, np.float32))

    failed = run_folders([tmp_path / "full", tmp_path / "empty"], {"Doubler": double})

    assert failed == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed"
