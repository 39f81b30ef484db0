from __future__ import annotations

import math

import pytest
import torch

from pipeline.nn.activations import ACTIVATIONS, activation

REFERENCES = {
    "exp": math.exp,
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "relu": lambda x: max(x, 0.0),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_equals_its_formula_in_float64(name: str) -> None:
    points = [-3.0, -0.5, 0.0, 0.25, 2.0]

    found = activation(name)(torch.tensor(points, dtype=torch.float64)).tolist()

    assert found == pytest.approx([REFERENCES[name](x) for x in points], rel=1e-12, abs=1e-15)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^activation must be one of exp, gelu, .*, got 'mish'$"):
        activation("mish")
