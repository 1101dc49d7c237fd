"""Work shared between threads, and what processes exchange: with one process, nothing."""

from __future__ import annotations

import pytest
import torch

from irl.processes import group, joined, side_by_side

CPU = torch.device("cpu")


def test_threads_give_results_in_order_and_leave_things_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = list(side_by_side(lambda i: (i, torch.get_num_threads()), range(20), CPU))
        assert found == [(i, 1) for i in range(20)]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda i: 1 / i, range(-2, 9), CPU))


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as process:
        assert (process, group()) == (0, (0, 1))
