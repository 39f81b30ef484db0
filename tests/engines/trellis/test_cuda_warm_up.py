from __future__ import annotations

import torch

from pipeline.engines.trellis.cuda_warm_up import ball_shell, warm_up_cuda
from pipeline.engines.trellis.image_encoder import ImageEncoder
from pipeline.engines.trellis.models import load_models
from pipeline.engines.trellis.spec import TINY
from pipeline.sampling.contexts import Contexts


def test_warming_up_runs_every_network() -> None:
    models = load_models(TINY, None, device=torch.device("cpu"), dtype=None)
    ran: set[str] = set()
    for part in vars(models).values():
        part.register_forward_hook(lambda module, inputs, output: ran.add(type(module).__name__))

    assert isinstance(models.encoder, ImageEncoder)
    image = torch.zeros((1, 112, 112, 3), dtype=torch.uint8)
    warm_up_cuda(models, torch.device("cpu"), lambda: Contexts(models.encoder(image), torch.zeros(1, 69, 48)))

    assert ran == {type(part).__name__ for part in vars(models).values()}


def test_the_shell_is_hollow_and_symmetric() -> None:
    coords = ball_shell(16)

    cells = {tuple(cell) for cell in coords[:, 1:].tolist()}
    assert (8, 8, 8) not in cells and (0, 0, 0) not in cells
    assert cells == {tuple(15 - i for i in cell) for cell in cells}
