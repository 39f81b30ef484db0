"""Work in pieces on several threads, against a plain loop."""

from __future__ import annotations

import pytest
import torch

from pipeline.ops.parallel import each_on_one_thread


@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_piece_is_processed_as_in_a_loop(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pieces = [(k, torch.randn((40, 40), generator=generator)) for k in range(count)]
    results: dict[int, torch.Tensor] = {}

    def work(piece: tuple[int, torch.Tensor]) -> None:
        number, matrix = piece
        results[number] = (matrix.double() @ matrix.double()).tanh()

    each_on_one_thread(work, pieces, at_once=3)

    assert sorted(results) == list(range(count))
    for number, matrix in pieces:
        expected = (matrix.double() @ matrix.double()).tanh()
        torch.testing.assert_close(results[number], expected, rtol=0, atol=1e-12)  # float64, another order of sums


def test_a_piece_runs_on_one_thread_without_gradients_and_the_setting_is_restored() -> None:
    before = torch.get_num_threads()
    seen: list[tuple[int, bool]] = []

    each_on_one_thread(
        lambda _: seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled())), range(4), at_once=2
    )

    assert seen == [(1, True)] * 4
    assert torch.get_num_threads() == before


def test_an_exception_of_a_piece_is_raised_and_the_setting_is_restored() -> None:
    before = torch.get_num_threads()

    def work(number: int) -> None:
        if number == 1:
            raise ValueError("piece 1")

    with pytest.raises(ValueError, match="piece 1"):
        each_on_one_thread(work, range(5), at_once=1)
    assert torch.get_num_threads() == before
