"""Reference computations on flow samplers."""

from __future__ import annotations

from torch import Tensor

from pipeline.sampling.flow_euler import FlowStep


def denoised(step: FlowStep, *, sigma_min: float) -> Tensor:
    """Return the data that a step's velocity predicts, of the shape of the sample.

    Source: microsoft/TRELLIS@6b0d647, trellis/pipelines/samplers/flow_euler.py, _v_to_xstart_eps.
    """
    return (1 - sigma_min) * step.before - (sigma_min + (1 - sigma_min) * step.t) * step.velocity
