"""The pretended device: what it refuses, what it counts, and what it leaves as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from tests.fakes.cuda.device import pretended_cuda, without_values

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch has CUDA")
CUDA = "cuda:0"


def test_tensors_of_two_devices_do_not_mix() -> None:
    with pretended_cuda():
        here, there = torch.ones(3, device=CUDA), torch.ones(3)

        with pytest.raises(RuntimeError, match="found cuda:0 and cpu"):
            here + there
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
            here.numpy()


def test_values_are_those_of_the_cpu() -> None:
    weight = torch.randn((4, 5), generator=torch.Generator().manual_seed(0))

    with pretended_cuda():
        found = F.gelu(weight.to(CUDA) @ weight.to(CUDA).T)[1:, [0, 2]].cpu()

    assert torch.equal(found, F.gelu(weight @ weight.T)[1:, [0, 2]])


def test_kernels_count_and_views_do_not() -> None:
    with pretended_cuda() as counts:
        x = torch.zeros((4, 6), device=CUDA)
        counts.reset()

        x.view(2, 12).T[1:3].unsqueeze(0).expand(5, -1, -1)
        assert counts.launches() == 0
        torch.addmm(torch.zeros(2, device=CUDA), x, torch.zeros((6, 2), device=CUDA))

    *_, product = counts.launched
    assert (counts.launches(), product.op, product.flops) == (3, "addmm", 2 * 4 * 6 * 2)
    assert product.moved_bytes == 4 * (2 + 24 + 12 + 8)


@pytest.mark.parametrize(
    ("ask", "waits"),
    [
        (lambda x: x[0].item(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x[torch.tensor([0, 1])], 1),
        (lambda x: torch.unique(x), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.tensor([1.0], device=CUDA), 1),
        (lambda x: torch.ones(3).to(CUDA), 1),
        (lambda x: torch.ones(3).pin_memory().to(CUDA), 1),
        (lambda x: torch.ones(3).pin_memory().to(CUDA, non_blocking=True), 0),
        (lambda x: torch.empty(4, pin_memory=True).copy_(x, non_blocking=True), 0),
        (lambda x: torch.full((3,), 2.0, device=CUDA), 0),
        (lambda x: x.repeat_interleave(3), 0),
        (lambda x: x[x.long()], 0),
    ],
)
def test_what_the_host_has_to_read_is_a_wait(ask, waits: int) -> None:
    with pretended_cuda() as counts:
        x = torch.arange(4.0, device=CUDA)
        counts.reset()

        ask(x)

    assert counts.waits() == waits, counts.report()


def test_attention_is_one_kernel_with_the_result_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((1, 2, 7, 8), generator=generator) for _ in range(3))
    starts = torch.tensor([0, 3, 3, 7], dtype=torch.int32)

    with pretended_cuda() as counts:
        there = [x.to(CUDA) for x in (q, k, v)]
        rows = [x[0].transpose(0, 1).half() for x in there]
        begins = starts.to(CUDA)
        counts.reset()
        whole = F.scaled_dot_product_attention(*there)
        in_runs = varlen_attn(*rows, begins, begins, 4, 4)

    assert isinstance(in_runs, torch.Tensor)
    assert [launch.op for launch in counts.launched] == ["scaled_dot_product_attention", "_varlen_attn"]
    expected = F.scaled_dot_product_attention(q, k, v)
    with pretended_cuda():
        assert torch.equal(whole.cpu(), expected)
        runs = [F.scaled_dot_product_attention(*(x[:, :, run] for x in (q, k, v))) for run in (slice(3), slice(3, 7))]
        expected = torch.cat(runs, dim=2)[0].transpose(0, 1)
        torch.testing.assert_close(in_runs.cpu().float(), expected, atol=2e-3, rtol=0)  # half precision


def test_a_network_without_values_is_counted_by_its_shapes() -> None:
    with torch.device("meta"):
        layer = torch.nn.Linear(1024, 4096, bias=False)

    with pretended_cuda() as counts:
        without_values(layer)
        out = layer(torch.zeros((10, 1024), device=CUDA))

        assert out.shape == (10, 4096)
        assert counts.launched[-1].flops == 2 * 10 * 1024 * 4096
        with pytest.raises(RuntimeError):
            out.sum().item()


def test_afterwards_torch_has_no_device_again() -> None:
    attend = F.scaled_dot_product_attention

    with pretended_cuda():
        assert torch.cuda.is_available()

    assert not torch.cuda.is_available()
    assert F.scaled_dot_product_attention is attend
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device=CUDA)
