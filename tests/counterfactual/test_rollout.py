"""Rollouts: common random numbers, independence of batches, exact propagation, and counts on paths made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irl import tabular
from irl.counterfactual import rollout as module
from irl.counterfactual.intervention import Intervention
from irl.counterfactual.rollout import Starts, rollout
from irl.counterfactual.scenario_policy import ScenarioPolicy
from irl.counterfactual.solve import solve
from irl.data.schema import Column
from irl.scenario import Change


def policy_of(world, *changes):
    return solve(world.model, world.intervention(*changes), world.transitions().of_segment, ridge_rows=1e-5)


def starts_of(places, tiers, segments):
    state = torch.stack([torch.as_tensor(places).float(), torch.as_tensor(tiers).float()], 1)
    return Starts(state, torch.as_tensor(segments))


def mixed_starts(members):
    index = torch.arange(members)
    return starts_of(index % 4, (index // 4) % 2, (index // 8) % 2)


def same(a, b):
    return all(torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items())


def test_a_change_of_nothing_changes_no_outcome(world):
    nothing = {"reward": {"action": "annual", "add": 0.0}}
    policies = {"baseline": policy_of(world), "nothing": policy_of(world, nothing)}
    counts = rollout(world.model, policies, mixed_starts(3000), periods=6, seed=0)
    assert same(counts["baseline"], counts["nothing"])


def test_cases_share_their_random_numbers(world):
    """Only those whose choice the change tips behave differently: far fewer than with numbers of their own."""
    change = {"reward": {"action": "annual", "add": 0.02}}
    policies = {"baseline": policy_of(world), "up": policy_of(world, change)}
    starts = starts_of(torch.zeros(4000), torch.zeros(4000), torch.zeros(4000, dtype=torch.long))
    counts = rollout(world.model, policies, starts, periods=1, seed=0)
    gain = counts["up"].chose[0, 0, 2] - counts["baseline"].chose[0, 0, 2]
    assert 0 <= gain < 60  # 0.5 points of 4,000 members; without common numbers its noise alone would be 40
    others = rollout(world.model, {"up": policies["up"]}, starts, periods=1, seed=1)["up"]
    assert abs(others.chose[0, 0, 2] - counts["up"].chose[0, 0, 2]) > 0


def test_the_batch_size_changes_nothing(world, monkeypatch):
    policies = {"baseline": policy_of(world), "up": policy_of(world, {"reward": {"action": "annual", "add": 0.5}})}
    found = []
    for size in (1024, 3 * 1024, 5000):
        parts = [slice(first, min(first + size, 5000)) for first in range(0, 5000, size)]
        monkeypatch.setattr(module, "batches", lambda members, device, parts=parts: parts)
        found.append(rollout(world.model, policies, mixed_starts(5000), periods=5, seed=2, used=(1,)))
    for counts in found[1:]:
        for case in policies:
            for name in counts[case].tensors():
                assert torch.allclose(getattr(counts[case], name), getattr(found[0][case], name), rtol=1e-6), name
            assert torch.equal(counts[case].moved, found[0][case].moved)


def test_slopes_of_a_sample_stand_for_all_members(world, monkeypatch):
    """Of the same numbers of members as all have, by segment; where all are in the sample, it is the whole."""
    draws = torch.randn(2, 3, world.model.terms.width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = world.transitions()
    policy = solve(world.model, world.intervention(), rows.of_segment, ridge_rows=1e-5, draws=draws / 5)
    starts = mixed_starts(40 * 1024)

    def slopes():
        return rollout(world.model, {"baseline": policy}, starts, periods=3, seed=0, used=(1,))["baseline"].slopes

    sampled = slopes()
    monkeypatch.setattr(module, "SAMPLED", 40)
    whole = slopes()
    assert torch.allclose(sampled.value, whole.value, rtol=1e-6)  # no luck in it: the blocks start alike
    error = (sampled.chose - whole.chose).norm() / whole.chose.norm()
    assert 1e-4 < error < 0.05


def test_the_sample_has_some_of_every_segment():
    segment = torch.zeros(100 * 1024, dtype=torch.long)
    segment[77 * 1024 + 5 : 77 * 1024 + 15] = 1  # ten members in one block
    segment[3 * 1024 : 3 * 1024 + 600] = 2
    segment[50 * 1024 : 50 * 1024 + 700] = 2
    sampled = module._sampled_blocks(segment, 4)
    assert sampled[[77, 3, 50]].all()
    assert module.SAMPLED <= sampled.sum() <= module.SAMPLED + 3
    assert module._sampled_blocks(segment[:2000], 4).tolist() == [True, True]


def test_what_is_visited_is_the_sample(world, monkeypatch):
    monkeypatch.setattr(module, "BLOCKS_PER_BATCH", 1)
    monkeypatch.setattr(module, "SAMPLED", 2)
    monkeypatch.setattr(module, "ENOUGH", 0)
    seen = []
    rollout(
        world.model, {"baseline": policy_of(world)}, mixed_starts(5 * 1024), periods=2, seed=0,
        visit=lambda case, faced, segment: seen.append((case, len(faced), len(segment))),
    )  # fmt: skip
    assert seen[0] == ("baseline", 1024, 1024) and len(seen) == 4  # two blocks, two periods
    assert seen[1][1] == seen[1][2] < 1024  # some have gone


def test_batches_are_whole_blocks_and_several():
    sizes = [rows.stop - rows.start for rows in module.batches(20_000, torch.device("cpu"))]
    assert sizes == [4096] * 4 + [20_000 - 4 * 4096]
    assert len(module.batches(1_000_000, torch.device("cpu"))) == 62
    assert module.batches(100, torch.device("cpu")) == [slice(0, 100)]
    assert len(module.batches(4_000_000, torch.device("meta"))) == 4


def test_the_seed_decides(world):
    policies = {"baseline": policy_of(world)}
    runs = [rollout(world.model, policies, mixed_starts(2000), periods=4, seed=s)["baseline"] for s in (5, 5, 6)]
    assert same(runs[0], runs[1])
    assert not torch.equal(runs[0].chose, runs[2].chose)


@pytest.mark.parametrize("changed", [False, True])
def test_shares_are_those_of_exact_propagation(world, changed):
    members, periods = 24_000, 8
    change = [{"remove": {"action": "annual", "where": {"place": "in"}}}] if changed else []
    starts = mixed_starts(members)
    counts = rollout(world.model, {"baseline": policy_of(world, *change)}, starts, periods=periods, seed=1)["baseline"]
    available = world.menu()
    available[2:4, 2] &= not changed
    mdp = world.mdp(available=available)
    policy = tabular.solve(mdp).policy
    mass = torch.bincount((starts.state[:, 0] * 2 + starts.state[:, 1]).long(), minlength=10).double()
    paths = list(tabular.propagate(mdp, policy, mass, periods=periods))
    for t, present in enumerate(paths):
        alive = present[:8].sum()
        exact = (present.unsqueeze(1) * policy).sum(0) / alive
        shares = counts.chose[:, t].sum(0) / counts.present[:, t].sum()
        assert counts.present[:, t].sum() / members == pytest.approx(float(alive / members), abs=0.012), t
        assert torch.allclose(shares, exact, atol=0.015), (t, shares, exact)
    assert paths[-1][:8].sum() < 0.9 * members  # some have left for good


def test_changed_dynamics_move_the_members(moving_world):
    """By the old policy, which alone tells nothing: places of tier 0 move as those of tier 1."""
    world, members, periods = moving_world, 24_000, 4
    like = {"dynamics": {"name": "place", "like": {"tier": 1}, "where": {"tier": 0}}}
    policy = policy_of(world)
    policies = {"baseline": policy, "like": replace(policy, intervention=world.intervention(like))}
    index = torch.arange(members)
    starts = starts_of(index % 4, 0 * index, index % 2)
    counts = rollout(world.model, policies, starts, periods=periods, seed=1)
    mass = torch.bincount((starts.state[:, 0] * 2 + starts.state[:, 1]).long(), minlength=10).double()
    moved = world.transition.clone()
    moved[:, 0] = moved[:, 1]
    found = {}
    for case, transition in (("baseline", world.transition), ("like", moved)):
        mdp, pi = replace(world, transition=transition).mdp(), tabular.solve(world.mdp()).policy
        present = list(tabular.propagate(mdp, pi, mass, periods=periods))[-1]
        found[case] = (present.unsqueeze(1) * pi).sum(0) / present[:8].sum()
        shares = counts[case].chose[:, -1].sum(0) / counts[case].present[:, -1].sum()
        assert torch.allclose(shares, found[case], atol=0.012), (case, shares, found[case])
    assert (found["like"] - found["baseline"]).abs().max() > 0.025  # else this shows nothing


def test_a_static_change_is_made_once_and_not_again_every_period(world):
    """A price raised by a fifth stays a fifth higher."""
    column = Column(name="tier", kind="numeric", dynamics="static", assigned="randomised", minimum=0.5, maximum=2.0)
    schema = replace(world.schema, columns=(world.schema.columns[0], column))
    dearer = Change.model_validate({"feature": {"name": "tier", "scale": 1.2}})
    seen = []

    def choose(faced, period):
        seen.append(faced[:, 1].tolist())
        return torch.ones(len(faced), dtype=torch.long)

    policy = Constant(world.model, Intervention(schema, (dearer,)), choose)
    rollout(world.model, {"baseline": policy}, starts_of([0, 1], [1, 2], [0, 0]), periods=4, seed=0)
    assert seen == [pytest.approx([1.2, 2.4])] * 4


class Constant(ScenarioPolicy):
    """A policy whose choices are given: choose(state, period) -> action[N]; the menu is everything but in ``gone``."""

    def __init__(self, model, intervention, choose):
        super().__init__(model, intervention, torch.zeros(2, 3, 1), 1, 0.0, 1.0, True)
        object.__setattr__(self, "choose", choose)
        object.__setattr__(self, "calls", [])

    def q(self, faced, segment):
        return torch.zeros(len(faced), 3, dtype=torch.float64)

    def menu(self, faced, segment):
        return (faced[:, :1] != 4).expand(-1, 3)

    def log_policy(self, faced, menu, segment):
        action = self.choose(faced, len(self.calls))
        self.calls.append(action)
        return torch.nn.functional.one_hot(action, 3).double().log()


def by_hand(world, paths, monkeypatch, *, gone=()):
    """Counts of segment 0, whose members' actions are given; members in ``gone`` = (member, period)."""
    actions = torch.tensor(paths)
    members, periods = actions.shape
    policy = Constant(world.model, world.intervention(), lambda state, t: actions[:, t])
    step = iter(range(1, periods))

    def sample(state, action, uniform, movements=()):
        following, t = state.clone(), next(step)
        for member, period in gone:
            if t >= period:
                following[member, 0] = 4
        return following

    monkeypatch.setattr(world.model.dynamics, "sample", sample)
    starts = starts_of([0] * members, [0] * members, [0] * members)
    return rollout(world.model, {"baseline": policy}, starts, periods=periods, seed=0)["baseline"]


def test_joining_leaving_and_surviving_counted_on_paths_made_by_hand(world, monkeypatch):
    paths = [
        [0, 1, 1, 0, 2],  # joins in 1, renews, leaves in 3, joins again in 4
        [1, 1, 2, 2, 0],  # a member from the start: joined before the simulation, so not in the life table
        [0, 0, 2, 1, 1],  # joins in 2, stays on another plan
        [0, 1, 0, 0, 0],  # joins in 1, leaves at once
    ]
    counts = by_hand(world, paths, monkeypatch)
    assert counts.present[0].tolist() == [4, 4, 4, 4, 4]
    assert counts.chose[0].tolist() == [[3, 1, 0], [1, 3, 0], [1, 1, 2], [2, 1, 1], [2, 1, 1]]
    assert counts.moved[0, 0].sum() == 0  # no one has a period before the first
    assert counts.moved[0, 1].tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]
    assert counts.moved[0, 2].tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 0]]
    assert counts.moved[0, 4].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
    # joiners: member 0 in 1 (and 4), member 2 in 2, member 3 in 1; one period later 3 could stay and 2 did, ...
    assert counts.at_risk[0].tolist() == [3, 2, 0, 0, 0]
    assert counts.stayed[0].tolist() == [2, 1, 0, 0, 0]
    assert counts.at_risk[1].sum() == 0 and counts.chose[1].sum() == 0


def test_members_who_have_gone_are_counted_nowhere(world, monkeypatch):
    counts = by_hand(world, [[0, 1, 1, 1], [1, 1, 1, 1]], monkeypatch, gone=[(0, 2)])
    assert counts.present[0].tolist() == [2, 2, 1, 1]
    assert counts.chose[0].sum(-1).tolist() == [2, 2, 1, 1]
    assert counts.moved[0].sum((-1, -2)).tolist() == [0, 2, 1, 1]
    assert counts.at_risk[0].sum() == 0  # gone before the first renewal


def test_the_terminal_state_ends_a_simulated_path(world):
    policies = {"baseline": policy_of(world)}
    counts = rollout(world.model, policies, starts_of([4, 4, 0], [0, 0, 0], [0, 0, 0]), periods=3, seed=0)["baseline"]
    assert counts.present[0, 0] == 1
    assert counts.valued[0] == 1


def test_forced_members_do_the_one_thing(world):
    starts = starts_of([3] * 500, [0] * 500, [0] * 500)
    counts = rollout(world.model, {"baseline": policy_of(world)}, starts, periods=1, seed=0)["baseline"]
    assert counts.chose[0, 0].tolist() == [0, 500, 0]
    assert counts.valued[0] == 0 and counts.value[0] == 0  # no value is known inside a contract


def test_values_and_gainers_at_the_start(world):
    up = policy_of(world, {"reward": {"action": "annual", "add": 0.5, "where": {"place": "in"}}})
    base = policy_of(world)
    starts = starts_of([0, 1, 1, 3], [0, 1, 0, 0], [0, 0, 1, 0])
    counts = rollout(world.model, {"baseline": base, "up": up}, starts, periods=1, seed=0)
    reward = world.reward.clone()
    reward[1, :, 2] += 0.5
    for case, oracle in (("baseline", tabular.solve(world.mdp())), ("up", tabular.solve(world.mdp(reward=reward)))):
        assert counts[case].valued.tolist() == [2, 1]
        exact = [float(oracle.value[0] + oracle.value[3]), float(oracle.value[2])]
        assert counts[case].value.tolist() == pytest.approx(exact, abs=1e-3)
    assert counts["baseline"].gained.tolist() == counts["baseline"].lost.tolist() == [0, 0]
    assert counts["up"].gained.tolist() == [2, 1] and counts["up"].lost.tolist() == [0, 0]
    down = rollout(world.model, {"baseline": up, "down": base}, starts, periods=1, seed=0)["down"]
    assert down.gained.tolist() == [0, 0] and down.lost.tolist() == [2, 1]


def test_use_counts_an_ordinal_by_the_numbers_of_its_levels(world):
    column = Column(name="tier", kind="ordinal", dynamics="learned", labels=("0", "10"))
    assert module.measure(column, torch.device("cpu")).tolist() == [0.0, 10.0]
    named = Column(name="tier", kind="ordinal", dynamics="learned", labels=("low", "mid", "high"))
    assert module.measure(named, torch.device("cpu")).tolist() == [0.0, 1.0, 2.0]
    assert module.measure(Column(name="n", kind="count", dynamics="learned"), torch.device("cpu")) is None
    counts = rollout(world.model, {"baseline": policy_of(world)}, mixed_starts(80), periods=2, seed=0, used=(1,))[
        "baseline"
    ]
    assert counts.use[:, 0, 0].tolist() == [20, 20]  # half of 40 in each segment have tier 1


def test_progress_is_told_in_members(world, monkeypatch):
    monkeypatch.setattr(module, "BLOCKS_PER_BATCH", 1)
    told = []
    rollout(
        world.model, {"baseline": policy_of(world)}, mixed_starts(2100), periods=1, seed=0,
        tick=lambda done, of: told.append((done, of)),
    )  # fmt: skip
    assert told == [(1024, 2100), (2048, 2100), (2100, 2100)]


def test_money_is_summed_over_members_present(world):
    """Each pays 1 for monthly and costs its tier; who has gone pays and costs nothing."""

    def paid(faced):
        tier = faced[:, 1:].double().expand(-1, 3)
        return torch.stack([torch.tensor([0.0, 1, 0]).double().expand(len(faced), 3), tier], 2)

    starts = mixed_starts(80)
    starts.state[::4, 0] = 4  # gone
    counts = rollout(world.model, {"baseline": policy_of(world)}, starts, periods=2, seed=0, paid=paid)["baseline"]
    assert torch.equal(counts.money[:, :, 0], counts.chose[:, :, 1])
    here = starts.state[:, 0] != 4
    for s in (0, 1):
        assert counts.money[s, 0, 1] == starts.state[here & (starts.segment == s), 1].sum()


def test_parts_of_the_members_add_up_and_do_not_follow_their_order(world):
    starts = mixed_starts(3000)
    counts = rollout(world.model, {"a": policy_of(world), "b": policy_of(world)}, starts, periods=3, seed=0, used=(1,))
    for name, total in counts["a"].tensors().items():
        part = getattr(counts["a"].groups, name)
        assert part.shape == (module.GROUPS, *total.shape)
        assert torch.allclose(part.sum(0), total)
        assert torch.equal(part, getattr(counts["b"].groups, name))  # the same members in every case
    sizes = counts["a"].groups.present[:, :, 0]
    assert sizes.min() > 50  # of 94 expected
