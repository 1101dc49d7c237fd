"""Batches: every row once an epoch, rows kept together, orders that can be repeated."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from irl.data import batches as batching
from irl.data.batches import Batches, Numbered, Through

ROWS = torch.arange(10)
PAIRS = (ROWS, torch.stack([ROWS * 10, ROWS * 100], dim=1))


def test_unshuffled_batches_come_in_order():
    batches = Batches(PAIRS, batch_size=4, seed=None)
    parts = list(batches)
    assert [len(first) for first, _ in parts] == [4, 4, 2] and len(batches) == 3
    assert torch.equal(torch.cat([first for first, _ in parts]), ROWS)
    assert torch.equal(torch.cat([first for first, _ in batches]), ROWS)  # and again in the next epoch


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64])
def test_every_row_comes_once_an_epoch_with_its_own_partner(batch_size: int):
    batches = Batches(PAIRS, batch_size=batch_size, seed=7)
    for _ in range(3):
        parts = list(batches)
        assert len(parts) == len(batches) and all(len(first) == batch_size for first, _ in parts[:-1])
        first, second = (torch.cat(column) for column in zip(*parts, strict=True))
        assert torch.equal(first.sort().values, ROWS)
        assert torch.equal(second, torch.stack([first * 10, first * 100], dim=1))


def orders(batches: Batches, epochs: int) -> list[list[int]]:
    return [torch.cat([part[0] for part in batches]).tolist() for _ in range(epochs)]


def test_epochs_differ_and_seeds_repeat():
    first = orders(Batches(PAIRS, batch_size=4, seed=1), 3)
    assert len({tuple(order) for order in first}) == 3
    assert ROWS.tolist() not in first
    torch.rand(5)  # the order does not hang on global random state
    assert orders(Batches(PAIRS, batch_size=4, seed=1), 3) == first
    assert orders(Batches(PAIRS, batch_size=4, seed=50), 3) != first


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    orders(Batches(PAIRS, batch_size=4, seed=1), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_passes_whole_batches_on():
    parts = list(DataLoader(Batches(PAIRS, batch_size=6, seed=None), batch_size=None))
    assert [tuple(first.shape) for first, _ in parts] == [(6,), (4,)]


@pytest.mark.parametrize("seed", [None, 0])
def test_no_rows_give_no_batches(seed: int | None):
    batches = Batches((torch.zeros(0, 3), torch.zeros(0)), batch_size=4, seed=seed)
    assert len(batches) == 0 and list(batches) == []


def test_tensors_of_different_length_are_refused():
    with pytest.raises(AssertionError, match="equally long"):
        Batches((torch.zeros(3), torch.zeros(4)), batch_size=2, seed=None)


def test_only_the_rows_asked_for_are_used_and_others_can_be_looked_through():
    where = ROWS % 3 == 1
    for seed in (None, 2):
        columns = (ROWS, Through(ROWS * 10, (ROWS + 1) % 10), Numbered(10, torch.device("cpu")))
        parts = list(Batches(columns, batch_size=2, seed=seed, where=where))
        first, following, number = (torch.cat(column) for column in zip(*parts, strict=True))
        assert first.sort().values.tolist() == [1, 4, 7] and [len(part[0]) for part in parts] == [2, 1]
        assert torch.equal(following, (first + 1) % 10 * 10) and torch.equal(number, first)


@pytest.mark.parametrize("masked", [False, True])
def test_more_rows_than_a_window_are_shuffled_window_by_window(monkeypatch, masked):
    monkeypatch.setattr(batching, "BLOCK", 4)
    monkeypatch.setattr(batching, "WINDOW", 12)
    rows = torch.arange(103)
    where = rows % 4 != 2 if masked else None
    batches = Batches((rows,), batch_size=10, seed=0, where=where)
    epochs = [list(batches) for _ in range(2)]
    for parts in epochs:
        assert [len(part[0]) for part in parts[:-1]] == [10] * (len(parts) - 1) and len(parts) == len(batches)
        found = torch.cat([part[0] for part in parts])
        assert torch.equal(found.sort().values, rows if where is None else rows[where])
        first = found[: 12 if where is None else 9]
        assert len((first // 4).unique()) == 3 and not torch.equal(first, first.sort().values)  # three whole blocks
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    in_order = torch.cat([part[0] for part in Batches((rows,), batch_size=10, seed=None, where=where)])
    assert torch.equal(in_order, rows if where is None else rows[where])
