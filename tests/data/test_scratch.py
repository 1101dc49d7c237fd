"""Tensors in files behave like tensors, also after their pages were handed back."""

from __future__ import annotations

import mmap

import torch

from irl.data import scratch
from irl.data.scratch import Scratch


def test_a_tensor_in_a_file_is_a_tensor(tmp_path):
    room = Scratch(tmp_path)
    values = room.room(1000, 3)
    assert not list(tmp_path.iterdir())  # unnamed: nothing is left, however the process ends
    assert values.shape == (1000, 3) and values.dtype == torch.float32 and not values.any()
    values[5] = torch.tensor([1.0, 2.0, 3.0])
    room.hand_back()
    assert values[5].tolist() == [1.0, 2.0, 3.0] and float(values.sum()) == 6.0
    assert room.room(4, dtype=torch.bool).dtype == torch.bool and room.room(0, 7).shape == (0, 7)


def test_resident_pages_are_handed_back(monkeypatch):
    if scratch._resident() is None:
        return
    monkeypatch.setattr(scratch, "MOST", 4 * 2**20)
    room = Scratch()
    values = room.room(64 * 2**20 // 4)
    values.fill_(1.0)
    room.hand_back()
    before = scratch._resident()
    values[:: mmap.PAGESIZE // 4].sum()  # touches every page
    for _ in range(200):
        if scratch._resident() < before + 8 * 2**20:
            break
        torch.zeros(1).add_(1)
        scratch.threading.Event().wait(0.02)
    assert scratch._resident() < before + 8 * 2**20
    assert float(values.sum()) == len(values)
