"""Half precision and rounded products, on small fixtures and on numbers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.engines.trellis2.flow import SLatFlowModel
from pipeline.nn.structure_decoder import occupied_coords
from tests.parity.harness import KITS, Fixture, fixture_paths, read_fixture, run_fixture
from tests.parity.kits import needs_kit
from tests.parity.precision import in_precision
from tests.parity.registry import all_targets
from tests.parity.rounding import ROUNDINGS, Rounding, rounded, rounded_attention
from tests.parity.trellis import sparse_input, tensor
from tests.parity.trellis2 import filled

SMALL = [
    path
    for path in fixture_paths(KITS / "parity")
    if path.stem.startswith(("pipeline_run", "ss_", "slat_")) and not path.stem.endswith(("2blk", "wide"))
]
"""Of whole models, without those of the released width."""


@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.bfloat16), (11, torch.float16)])
def test_rounding_to_some_bits_is_that_of_the_type(bits: int, dtype: torch.dtype) -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    x = x[x.abs() > 2**-14]  # float16 has fewer bits below

    assert torch.equal(rounded(x, bits), x.to(dtype).float())


@pytest.mark.parametrize(("parts", "most"), [(1, 4e-3), (2, 2e-5), (3, 3e-7)])  # 2^-8 for each part, and float32
def test_each_further_part_of_the_factors_makes_a_product_256_times_as_exact(parts: int, most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn((50, 300), generator=generator), torch.randn((300, 40), generator=generator)
    rounding = Rounding(8, weights=parts, activations=parts)

    product = rounding.product(torch.matmul, x, y, is_layer=True).double()

    exact = x.double() @ y.double()
    assert most / 50 < (product - exact).norm() / exact.norm() < most


def test_attention_without_rounding_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, 3, 20, 8), generator=generator) for _ in range(3))
    mask = torch.rand((2, 1, 20, 20), generator=generator) > 0.3
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    with rounded_attention(Rounding(8, activations=0)):
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    torch.testing.assert_close(found, expected)


@needs_kit("parity")
@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_float16_is_within_the_bound_but_for_voxels_whose_logits_are_near_zero(path: Path) -> None:
    verdict = run_fixture(path, in_precision(all_targets(), "float16"))

    assert verdict.ok, verdict.line()


@needs_kit("parity")
@pytest.mark.parametrize("name", [*ROUNDINGS, "float16", "bfloat16"])
def test_bfloat16_needs_two_parts_of_weights_and_of_activations(name: str) -> None:
    targets = in_precision(all_targets(), name)

    verdicts = [run_fixture(path, targets) for path in SMALL if path.stem in ("slat_flow_tiny_a", "ss_flow_eps")]

    is_exact_enough = name.startswith("float16") or name == "bfloat16-two-parts"
    assert [verdict.ok for verdict in verdicts] == [is_exact_enough] * len(verdicts)


@needs_kit("parity")
def test_a_structure_decoder_in_half_precision_may_not_decide_otherwise_far_from_zero() -> None:
    fixture = read_fixture(KITS / "parity" / "ss_dec_tiny_a.npz")
    logits = fixture.golden["logits"].copy()
    logits.reshape(-1)[abs(logits).argmax()] *= -1
    coords = occupied_coords(torch.from_numpy(logits)).numpy()
    changed = replace(fixture, golden={"logits": logits, "coords": coords})

    deviations = in_precision(all_targets(), "float16")[fixture.target](changed)

    assert {one.output for one in deviations if not one.ok} == {"logits", "coords"}


@needs_kit("parity_trellis2")
@pytest.mark.parametrize("name", ["slat_flow_shape_tiny_a", "slat_flow_tex_tiny_b_batch2"])
def test_weights_that_are_stored_in_bfloat16_lose_less_in_float16(name: str) -> None:
    fixture = read_fixture(KITS / "parity_trellis2" / f"{name}.npz")
    exact = _velocities_with_stored_weights(fixture, torch.float32)

    def distance(dtype: torch.dtype) -> float:
        return float((_velocities_with_stored_weights(fixture, dtype) - exact).norm() / exact.norm())

    assert distance(torch.float16) < 1e-3  # the weights are exact in it
    assert distance(torch.bfloat16) > 5e-3


def _velocities_with_stored_weights(fixture: Fixture, dtype: torch.dtype) -> torch.Tensor:
    model: SLatFlowModel = filled(SLatFlowModel(**fixture.args), fixture.spec)
    model.set_dtype(torch.bfloat16)
    model.set_dtype(dtype)
    feats, voxels = sparse_input(fixture)
    concat = tensor(fixture, "concat_feats") if "concat_feats" in fixture.inputs else None
    with torch.inference_mode():
        condition = model.encode_condition(tensor(fixture, "cond")[None])
        return model(feats, voxels, tensor(fixture, "t"), condition, concat).float()
