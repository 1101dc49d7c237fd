"""Members dealt out to threads and processes: rollouts come to the same numbers, exactly."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from irl import processes as module
from irl.counterfactual import rollout as rollout_module
from irl.counterfactual.rollout import rollout
from irl.counterfactual.solve import solve

PROCESS = """
import sys, torch
from irl.processes import joined
from irl.counterfactual.rollout import rollout
model, policies, starts = torch.load(sys.argv[1], weights_only=False)
visited = []
see = lambda case, faced, segment: visited.append(len(faced))
with joined() as process:
    counts = rollout(model, policies, starts, periods=5, seed=2, used=(1,), visit=see)
torch.save((counts, sum(visited)), f"{sys.argv[2]}{process}")
"""


def job(world, members, draws=3):
    generator = torch.Generator().manual_seed(0)
    state = world.states()[torch.randint(8, (members,), generator=generator)]
    starts = rollout_module.Starts(state, torch.randint(2, (members,), generator=generator))
    shifts = torch.randn(draws, 3, world.model.terms.width, generator=generator, dtype=torch.float64) / 10
    changes = {"baseline": (), "up": ({"reward": {"action": "annual", "add": 0.5}},)}
    rows = world.transitions()
    policies = {
        case: solve(world.model, world.intervention(*change), rows.of_segment, ridge_rows=1e-5, draws=shifts)
        for case, change in changes.items()
    }
    return world.model, policies, starts


def same(a, b):
    pairs = [(a[case].tensors() | {"s": None}, b[case].tensors()) for case in a]
    slopes = [(a[case].slopes.tensors(), b[case].slopes.tensors()) for case in a]
    return all(torch.equal(x[name], y[name]) for x, y in pairs + slopes for name in y)


def test_threads_and_shares_of_processes_add_up_to_one_process_exactly(world, monkeypatch):
    monkeypatch.setattr(rollout_module, "BLOCKS_PER_BATCH", 1)
    model, policies, starts = job(world, 5000)

    def run():
        return rollout(model, policies, starts, periods=5, seed=2, used=(1,))

    whole = run()
    for number in (2, 3):
        monkeypatch.setattr(rollout_module, "side_by_side", lambda work, items, device: map(work, items))
        parts = []
        for process in range(number):
            monkeypatch.setattr(rollout_module, "group", lambda p=process, n=number: (p, n))
            parts.append(run())
        for case, counts in whole.items():
            for name, total in counts.tensors().items():
                assert torch.equal(sum(getattr(part[case], name) for part in parts), total), name
            slopes = sum(part[case].slopes.chose for part in parts)
            assert torch.allclose(slopes, counts.slopes.chose, rtol=1e-12)
    monkeypatch.undo()
    monkeypatch.setattr(rollout_module, "BLOCKS_PER_BATCH", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        assert same(run(), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_two_processes_come_to_the_same_as_one(world, tmp_path):
    torch.save(job(world, 20_000), tmp_path / "job")
    (tmp_path / "process.py").write_text(PROCESS)
    paths = [tmp_path / "process.py", tmp_path / "job"]
    subprocess.run([sys.executable, *paths, tmp_path / "alone"], check=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, *paths, tmp_path / "both"], check=True)
    alone, *both = (torch.load(tmp_path / name, weights_only=False) for name in ("alone0", "both0", "both1"))
    for counts, _ in both:
        assert same(alone[0], counts)
    assert 0 < both[0][1] < alone[1] == both[0][1] + both[1][1]
    assert module.group() == (0, 1)
