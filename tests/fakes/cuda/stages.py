"""Stages of the engines, by the qualified names of the functions that run them: see `Counts`."""

from __future__ import annotations

STAGES = {
    "GenerationRun._sample_voxels": "structure",
    "GenerationRun._sample_latents": "latents",
    "decode_mesh": "decode",
    "decode_gaussians": "decode",
    "render_turntable": "render",
    "DINOSingleImageTokenizer.forward": "encode",
    "Transformer1D.forward": "backbone",
    "extract_surface": "surface",
    "sample_structure": "structure",
    "sample_latents": "latents",
    "SparseUnetVaeDecoder.forward": "decode",
    "surface_of": "surface",
}
