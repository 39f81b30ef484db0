"""Files of the released text models: sizes, strict headers, and decoders that are stored once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.trellis import weights as image_weights
from pipeline.engines.trellis.spec import IMAGE_LARGE, TextEncoderSpec
from pipeline.engines.trellis.text import weights
from pipeline.engines.trellis.text.engine import TrellisTextEngine
from pipeline.engines.trellis.text.spec import CLIP_LARGE, SIZES
from pipeline.engines.trellis.weights import TEXT_ENCODER_FOLDER, WEIGHTS_FOLDER, check_weights, manifest
from pipeline.errors import InvalidRequest, WeightsUnusable
from pipeline.nn.tensor_files import Entry
from tests.fakes.sparse_files import write_sparse


def write_model(folder: Path, size: str, *, flows: bool = True) -> None:
    """Write sparse files of a size, with the vocabulary's places filled."""
    spec = SIZES[size]
    for checkpoint in spec.checkpoints.values():
        if flows or "flow" not in checkpoint.file_name:
            write_sparse(folder / checkpoint.file_name, manifest(Path(checkpoint.file_name).stem))
    others = {"vision_model.post_layernorm.bias": Entry("F32", (1024,))}
    write_sparse(folder / TEXT_ENCODER_FOLDER / "model.safetensors", {**manifest("text_encoder"), **others})
    for name in ("vocab.json", "merges.txt"):
        (folder / TEXT_ENCODER_FOLDER / name).write_text(json.dumps({}))


@pytest.mark.parametrize("size", SIZES)
def test_the_packaged_manifests_have_the_published_sizes(tmp_path: Path, size: str) -> None:
    write_model(tmp_path, size)

    check_weights(tmp_path, SIZES[size])

    assert len(manifest("text_encoder")) == 196


def test_the_sizes_of_the_two_large_flow_models_are_those_of_the_published_files(tmp_path: Path) -> None:
    write_model(tmp_path, "xlarge")

    spec = SIZES["xlarge"]
    sizes = [(tmp_path / each.file_name).stat().st_size for each in (spec.structure_flow, spec.latent_flow)]
    assert sizes == [1_976_327_512, 2_151_142_688]


def test_a_tensor_of_another_shape_in_the_text_tower_is_named(tmp_path: Path) -> None:
    write_model(tmp_path, "base")
    key = "text_model.final_layer_norm.weight"
    entries = {**manifest("text_encoder"), key: Entry("F32", (1, 768))}
    write_sparse(tmp_path / TEXT_ENCODER_FOLDER / "model.safetensors", entries)

    with pytest.raises(WeightsUnusable, match=rf"{key} is F32 \[1, 768\], expected F32 \[768\]"):
        check_weights(tmp_path, SIZES["base"])


def test_the_largest_size_that_is_there_is_loaded(tmp_path: Path) -> None:
    assert weights.chosen_size(tmp_path) == "xlarge"
    for size in ("base", "large"):
        write_model(tmp_path / WEIGHTS_FOLDER, size)
        assert weights.chosen_size(tmp_path) == size
        assert TrellisTextEngine(weights=tmp_path).spec is SIZES[size]
        assert weights.missing_bytes(tmp_path) == 0
    assert weights.missing_bytes(tmp_path, size="xlarge") == 1_976_327_512 + 2_151_142_688


def test_the_image_models_decoders_are_not_missing_again(tmp_path: Path) -> None:
    decoders = sum(
        checkpoint.size_bytes or 0
        for checkpoint in IMAGE_LARGE.checkpoints.values()
        if "flow" not in checkpoint.file_name
    )
    everything = weights.missing_bytes(tmp_path)
    for checkpoint in IMAGE_LARGE.checkpoints.values():
        write_sparse(tmp_path / WEIGHTS_FOLDER / checkpoint.file_name, manifest(Path(checkpoint.file_name).stem))

    assert everything - weights.missing_bytes(tmp_path) == decoders
    assert CLIP_LARGE.size_bytes is not None
    assert 6.4e9 < everything < 6.6e9


def test_fetching_takes_flows_decoders_and_tower_each_from_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, str, list[str]]] = []

    def fetch_files(repo_id: str, names: Sequence[str], folder: Path, *, revision: str, **_: Any) -> None:
        fetched.append((repo_id, revision[:7], sorted(name for name in names if not (folder / name).exists())))

    write_model(tmp_path / WEIGHTS_FOLDER, "large")
    monkeypatch.setattr(weights, "fetch_files", fetch_files)
    digests = dict.fromkeys(CLIP_LARGE.sha256, "0" * 64)
    monkeypatch.setattr(weights, "file_sha256", lambda path: digests[path.name])

    with pytest.raises(WeightsUnusable, match=r"has the sha256 0000.*expected .* as published"):
        weights.fetch_weights(tmp_path, size="large")
    digests.update(CLIP_LARGE.sha256)
    weights.fetch_weights(tmp_path, size="large")

    assert [each[:2] for each in fetched[:3]] == [
        ("microsoft/TRELLIS-text-large", "4aad9f4"),
        ("microsoft/TRELLIS-image-large", "25e0d31"),
        ("openai/clip-vit-large-patch14", "32bd642"),
    ]
    assert all(names == [] for *_, names in fetched)


def test_an_unknown_size_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="the size must be one of base, large, xlarge, got 'tiny'"):
        weights.fetch_weights(tmp_path, size="tiny")


def test_an_engine_without_weights_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnusable, match=r"ss_flow_txt_dit_XL_16l8_fp16\.safetensors is missing in .*trellis"):
        TrellisTextEngine(weights=tmp_path, device="cpu").load()


def test_the_image_engine_and_the_text_engine_keep_the_decoders_in_one_place() -> None:
    assert image_weights.WEIGHTS_FOLDER == weights.WEIGHTS_FOLDER
    for spec in SIZES.values():
        assert isinstance(spec.encoder, TextEncoderSpec)
        for name in ("structure_decoder", "gaussian_decoder", "radiance_decoder", "mesh_decoder"):
            assert spec.checkpoints[name] == IMAGE_LARGE.checkpoints[name]
