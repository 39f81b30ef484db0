from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipeline.nn.deterministic_weights import deterministic_array, fill_deterministic
from pipeline.nn.embeddings import position_embedding, timestep_sinusoids


def test_a_key_always_gets_the_same_values_and_another_key_others() -> None:
    first = deterministic_array("a.weight", (3, 4), seed=1)

    assert np.array_equal(first, deterministic_array("a.weight", (3, 4), seed=1))
    assert not np.array_equal(first, deterministic_array("b.weight", (3, 4), seed=1))
    assert not np.array_equal(first, deterministic_array("a.weight", (3, 4), seed=2))


def test_biases_are_small_norms_are_near_one_and_weights_shrink_with_their_fan_in() -> None:
    assert abs(deterministic_array("a.bias", (4000,), seed=0).std() - 0.05) < 0.005
    assert abs(deterministic_array("norm.weight", (4000,), seed=0).mean() - 1) < 0.01
    assert abs(deterministic_array("gamma", (40, 100), seed=0).mean() - 1) < 0.01
    assert abs(deterministic_array("a.weight", (100, 5, 2, 2, 2), seed=0).std() * 40**0.5 - 1) < 0.05


def test_filling_leaves_buffers_alone_but_scaling_reaches_them() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("table", torch.ones(3))

    fill_deterministic(module, seed=3, key_prefix="part.", scale={"part.table": 2.0, "part.*": 0.5})

    assert module.table.tolist() == [1.0, 1.0, 1.0]  # type: ignore[operator]
    assert torch.equal(module.bias.detach(), torch.from_numpy(deterministic_array("part.bias", (2,), seed=3)) * 0.5)


def test_odd_widths_are_padded_with_zeros() -> None:
    assert timestep_sinusoids(torch.tensor([3.0]), 5)[0, -1] == 0
    assert position_embedding(torch.ones(1, 3, dtype=torch.int32), 64)[0, 60:].tolist() == [0.0] * 4
