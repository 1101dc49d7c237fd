"""A simulation that is stopped goes on where its sums were stored, to bitwise the same sums."""

from __future__ import annotations

import torch
from pytest import MonkeyPatch, fixture, mark, raises

from irl.counterfactual import rollout as module
from irl.counterfactual.kept import FILE, KeptSums
from irl.counterfactual.rollout import Starts, rollout
from irl.counterfactual.solve import solve
from irl.counterfactual.support import Tally, support

MEMBERS = 6 * 1024 + 100


class Stopped(Exception):
    """Stands for a process that dies."""


@fixture
def simulated(world, monkeypatch: MonkeyPatch):
    """Simulate batches of one block, stopped after so many; the sums, their slopes, and what was outside the data."""
    monkeypatch.setattr(
        module, "batches", lambda members, device: [slice(i, i + 1024) for i in range(0, members, 1024)]
    )
    index = torch.arange(MEMBERS)
    state = torch.stack([(index % 4).float(), (index // 4 % 2).float()], 1)
    change = world.intervention({"reward": {"action": "annual", "add": 0.5}})
    policies = {
        name: solve(world.model, each, world.transitions().of_segment, ridge_rows=1e-5)
        for name, each in (("baseline", world.intervention()), ("up", change))
    }

    def simulate(folder, *, stop: int | None = None, every: float = 0.0):
        tally = Tally(support(world.schema, state[:3], index[:3] * 0))
        done = iter(range(1, 100))

        def tick(members: int, of: int) -> None:
            if next(done) == stop:
                raise Stopped

        found = rollout(
            world.model,
            policies,
            Starts(state, index % 2),
            periods=3,
            seed=0,
            used=(1,),
            tick=tick,
            visit=tally,
            kept=None if folder is None else KeptSums(folder, tally, every=every),
        )
        sums = {f"{c}.{n}": t for c, counts in found.items() for n, t in counts.tensors().items()}
        outside = {f"{c}.outside": torch.tensor([tally.visited[c], tally.left[c]]) for c in policies}
        return sums | outside | {f"{c}.pairs": tally.by_pair[c] for c in policies}

    return simulate


def alike(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(map(torch.equal, a.values(), b.values()))


def test_a_simulation_stopped_twice_ends_as_if_it_never_was(simulated, tmp_path):
    whole = simulated(None)
    for stop in (3, 2):
        with raises(Stopped):
            simulated(tmp_path, stop=stop)
    with raises(Stopped):  # three batches are stored, of seven
        simulated(tmp_path, stop=4)
    assert alike(simulated(tmp_path), whole)
    assert whole["baseline.outside"][1] > 0


@mark.parametrize("damage", ["cut short", "of other sums"])
def test_what_cannot_be_gone_on_from_is_begun_again(simulated, tmp_path, damage):
    with raises(Stopped):
        simulated(tmp_path, stop=3)
    path = tmp_path / FILE
    content = path.read_bytes()
    path.write_bytes(content[:-40] if damage == "cut short" else content.replace(b"sum 0.chose", b"sum 9.chose"))
    assert alike(simulated(tmp_path), simulated(None))


def test_nothing_is_stored_before_its_time(simulated, tmp_path):
    simulated(tmp_path, every=60.0)
    assert not list(tmp_path.iterdir())
