from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipeline.nn.deterministic_weights import deterministic_array, fill_deterministic


def test_the_values_depend_on_the_key_and_the_seed_alone() -> None:
    first = deterministic_array("a.weight", (3, 4), seed=1)

    assert np.array_equal(first, deterministic_array("a.weight", (3, 4), seed=1))
    assert not np.array_equal(first, deterministic_array("b.weight", (3, 4), seed=1))
    assert not np.array_equal(first, deterministic_array("a.weight", (3, 4), seed=2))


def test_biases_are_near_zero_norms_near_one_and_weights_scale_with_the_fan_in() -> None:
    assert abs(deterministic_array("a.bias", (4000,), seed=0).std() - 0.05) < 0.005
    assert abs(deterministic_array("norm.weight", (4000,), seed=0).mean() - 1) < 0.01
    assert abs(deterministic_array("gamma", (40, 100), seed=0).mean() - 1) < 0.01
    assert abs(deterministic_array("a.weight", (100, 5, 2, 2, 2), seed=0).std() * 40**0.5 - 1) < 0.05


def test_filling_keeps_buffers_and_scaling_applies_to_them_too() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("table", torch.ones(3))

    fill_deterministic(module, seed=3, key_prefix="part.", scale={"part.table": 2.0, "part.*": 0.5})

    assert module.table.tolist() == [1.0, 1.0, 1.0]  # type: ignore[operator]
    assert torch.equal(module.bias.detach(), torch.from_numpy(deterministic_array("part.bias", (2,), seed=3)) * 0.5)
