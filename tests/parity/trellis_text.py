"""The checks of the TRELLIS-text kits by `spec.target`; layers and samplers are checked by `tests.parity.trellis`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.engines.trellis.text.encoder import TOWER, TextEncoder
from pipeline.mesh.voxelize import voxelize
from pipeline.nn.deterministic_weights import fill_deterministic
from pipeline.sampling.contexts import Contexts
from tests.fakes.clip_vocabulary import prompt_tokenizer
from tests.parity.harness import Check, Fixture
from tests.parity.trellis import PipelineRun, check_into, contexts_of, tensor

TARGETS: dict[str, Check] = {}
check = check_into(TARGETS)

END = 49407


@check("CLIPTokenizer")
def tokenizer(fixture: Fixture) -> Mapping[str, Any]:
    ids = prompt_tokenizer().ids(fixture.spec["texts"]).numpy().astype(np.int32)
    length = (ids[:, 1:] == END).argmax(axis=1) + 2
    return {"input_ids": ids, "length": length.astype(np.int32)}


def text_encoder(config: Mapping[str, Any], spec: Mapping[str, Any]) -> TextEncoder:
    """Return a text tower with the kit's weights, whose keys are those of the published file."""
    model = CLIPTextModel(CLIPTextConfig(**{name: value for name, value in config.items() if name != "seed"}))
    fill_deterministic(model, seed=spec["seed"], key_prefix=TOWER, scale=spec.get("state_scale"))
    return TextEncoder(model, prompt_tokenizer())


@check("CLIPTextModel")
def text_tower(fixture: Fixture) -> Mapping[str, Any]:
    hidden = text_encoder(fixture.args, fixture.spec)(tensor(fixture, "input_ids").long())
    if "rows" in fixture.golden:
        hidden = hidden.flatten(0, 1)  # (B, 77, C) -> (B * 77, C)
    return {"last_hidden_state": hidden}


def encode_text(fixture: Fixture) -> Mapping[str, Any]:
    encoder = text_encoder(fixture.args["text_model"], fixture.spec)
    return {"cond": encoder.encode(fixture.spec["texts"]), "null_cond": encoder.encode([""])}


def run(fixture: Fixture) -> Mapping[str, Any]:
    pipeline = PipelineRun(fixture, contexts_of(fixture))
    structure = pipeline.sample_structure()
    return structure | pipeline.sample_latents(structure["coords"])


def run_prompt(fixture: Fixture) -> Mapping[str, Any]:
    spec = fixture.spec
    encoder = text_encoder(spec["text_model"], spec["text_model"])
    texts = [spec["run_args"]["prompt"], ""]
    cond, negative = (encoder.encode([text]) for text in texts)
    pipeline = PipelineRun(fixture, Contexts(cond, negative))
    structure = pipeline.sample_structure()
    sampled = pipeline.sample_latents(structure["coords"])
    ids = encoder.tokenizer.ids(texts).int()
    return {**structure, **sampled, "input_ids": ids, "cond": cond, "neg_cond": negative}


def run_variant(fixture: Fixture) -> Mapping[str, Any]:
    coords, copies = tensor(fixture, "coords"), fixture.spec["run_args"]["num_samples"]
    numbered = [torch.cat([torch.full_like(coords[:, :1], copy), coords], dim=1) for copy in range(copies)]
    return PipelineRun(fixture, contexts_of(fixture)).sample_latents(torch.cat(numbered))


def voxels_of_mesh(fixture: Fixture) -> Mapping[str, Any]:
    return {"coords": voxelize(fixture.inputs["vertices"], fixture.inputs["faces"]).astype(np.int32)}


OPERATIONS: dict[str, Callable[[Fixture], Mapping[str, Any]]] = {
    "encode_text": encode_text,
    "run": run,
    "run_prompt": run_prompt,
    "run_variant": run_variant,
    "voxelize": voxels_of_mesh,
}


@check("TrellisTextTo3DPipeline")
def pipeline_operation(fixture: Fixture) -> Mapping[str, Any]:
    return OPERATIONS[fixture.spec["op"]](fixture)
