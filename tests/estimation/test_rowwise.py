"""What is computed for every row of a panel, some rows at a time."""

import pytest
import torch

from irl import processes
from irl.estimation import rowwise


@pytest.mark.parametrize("step", [1, 3, 7, 50])
def test_every_so_many_th_row_whatever_the_parts(monkeypatch, step):
    where = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.4
    monkeypatch.setattr(rowwise.parts_of, "__defaults__", (16,))
    assert torch.equal(rowwise.every(where, step), where.nonzero().squeeze(1)[::step])
    assert not len(rowwise.every(where & ~where, step))


def test_means_and_spreads_do_not_depend_on_how_many_values_are_taken_up_at_once(monkeypatch):
    values, weight = torch.randn(100, 2), torch.rand(100)
    whole = processes.mean(values, weight), processes.mean(values[:, 0]), processes.spread(values, correction=1)
    monkeypatch.setattr(processes, "AT_ONCE", 9)
    parts = processes.mean(values, weight), processes.mean(values[:, 0]), processes.spread(values, correction=1)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts[2], values.double().std(0))
    assert processes.mean(values[:0]).isnan().all()
