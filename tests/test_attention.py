"""The equations of members who do not always decide, against exact small problems; lambda's logit and its options."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from irl import bellman, tabular
from irl.attention import AttentionLogit
from irl.config import Config
from irl.data.fit import fit_schema
from irl.data.schema import StateSchema

STATES, ACTIONS, GAMMA, ALPHA, ANCHOR = 4, 3, 0.9, 0.7, 1
INERTIA = bellman.Inertia(torch.tensor([0.4, 0.7, 0.5, 0.2], dtype=torch.float64), torch.tensor([0, 2, 1, -1]))


def problem(inertia: bellman.Inertia | None = INERTIA) -> tuple[tabular.FiniteMDP, torch.Tensor]:
    """A market of four states, in the second of which the default is not on the menu, and its transition[S, A, S]."""
    generator = torch.Generator().manual_seed(0)
    move = torch.rand(STATES, ACTIONS, STATES, generator=generator).double()
    move /= move.sum(-1, keepdim=True)
    menu = torch.ones(STATES, ACTIONS, dtype=torch.bool)
    menu[1, 2] = False
    reward = torch.randn(STATES, ACTIONS, generator=generator).double()
    return tabular.FiniteMDP(reward, menu, tabular.dense_expectation(move), GAMMA, ALPHA, inertia=inertia), move


def test_rewards_from_population_frequencies_are_exact():
    """What is seen, lambda and the default -> what is decided -> W by the anchor's fixed point -> the rewards."""
    mdp, move = problem()
    seen, menu = tabular.solve(mdp, tolerance=1e-12).policy, mdp.available
    attention = INERTIA.within(menu)
    assert attention.tolist() == [0.4, 1.0, 0.5, 1.0]  # off the menu, or none: all is decided
    passed = (1 - attention).unsqueeze(1) * INERTIA.passive(ACTIONS)
    log_pi = ((seen - passed) / attention.unsqueeze(1)).log()
    mu, known = torch.zeros_like(seen), mdp.reward[:, ANCHOR]
    mu[:, ANCHOR] = 1
    nu = bellman.reference_of_value(mu, menu, INERTIA)
    ahead = move[:, ANCHOR]
    y = ahead @ bellman.reference_target(known, 0.0, bellman.reference_log_policy(log_pi, nu), GAMMA, ALPHA)
    continuation = torch.linalg.solve(torch.eye(STATES).double() - GAMMA * ahead, y)
    w = bellman.value_from_reference(known + continuation, bellman.reference_log_policy(log_pi, nu), ALPHA)
    value = bellman.value_from_reference(known + continuation, bellman.reference_log_policy(log_pi, mu), ALPHA)
    q = bellman.q_from_value(value, log_pi, ALPHA)
    torch.testing.assert_close(bellman.ex_ante_value(value, q, menu, INERTIA), w, rtol=0, atol=1e-9)
    reward = bellman.reward_from_q(q, move @ w, GAMMA)
    torch.testing.assert_close(reward[menu], mdp.reward[menu], rtol=0, atol=1e-8)
    # W is also what pi~ earns with the shocks of what is decided, evaluated as the kernel does
    pi = bellman.seen_policy(log_pi, INERTIA).exp()
    flow = (pi * mdp.reward).sum(1) + ALPHA * bellman.received_entropy(log_pi, inertia=INERTIA)
    step = torch.eye(STATES).double() - GAMMA * torch.einsum("sa,sat->st", pi, move)
    torch.testing.assert_close(torch.linalg.solve(step, flow), w, rtol=0, atol=1e-8)


def test_how_values_move_with_lambda():
    mdp, move = problem()
    solved = tabular.solve(mdp, tolerance=1e-13)
    log_pi = bellman.log_policy(solved.q, mdp.available, ALPHA)
    h = 1e-5
    ends = []
    for sign in (1, -1):
        moved = bellman.Inertia(INERTIA.attention + sign * h, INERTIA.default)
        ends.append(tabular.solve(problem(moved)[0], tolerance=1e-13).value)
    there = INERTIA.passive(ACTIONS).bool() & mdp.available
    gain = -ALPHA * torch.where(there, log_pi, 0.0).sum(1)
    step = torch.eye(STATES).double() - GAMMA * torch.einsum("sa,sat->st", solved.policy, move)
    expected = torch.linalg.solve(step, gain)
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * h), expected, rtol=1e-5, atol=1e-6)


def test_what_is_seen_and_how_it_moves():
    q = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()
    menu = problem()[0].available
    log_pi = bellman.log_policy(q, menu, ALPHA)
    pi = log_pi.exp()
    seen = bellman.seen_policy(log_pi, INERTIA).exp()
    torch.testing.assert_close(seen[0], 0.4 * pi[0] + 0.6 * torch.tensor([1.0, 0, 0]).double())
    torch.testing.assert_close(seen[[1, 3]], pi[[1, 3]])
    decided = bellman.decided_share(log_pi, INERTIA)
    assert decided[0, 0] == pytest.approx(float(0.4 * pi[0, 0] / seen[0, 0])) and decided[0, 1] == pytest.approx(1)
    slope = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(2)).double()
    found, h = bellman.log_policy_slope(slope, log_pi, ALPHA, None, INERTIA), 1e-6
    for b in range(2):
        moved = [
            bellman.seen_policy(bellman.log_policy(q + s * h * slope[..., b], menu, ALPHA), INERTIA) for s in (1, -1)
        ]
        expected = (moved[0] - moved[1])[menu] / (2 * h)
        torch.testing.assert_close(found[..., b][menu], expected, rtol=1e-6, atol=1e-8)
    for name in ("seen_policy", "decided_share"):
        whole = getattr(bellman, name)(log_pi, None)
        assert torch.equal(whole, log_pi if name == "seen_policy" else torch.ones_like(log_pi))


def test_an_unavailable_action_has_no_derivative():
    inertia = bellman.Inertia(torch.full((2,), 0.5, requires_grad=True), torch.tensor([0, 2]))
    log_pi = bellman.log_policy(torch.zeros(2, 3), torch.tensor([[True, True, False]] * 2), 1.0)
    bellman.seen_policy(log_pi, inertia)[:, 0].sum().backward()
    assert inertia.attention.grad.isfinite().all() and inertia.attention.grad[1] == 0


STUDY = {
    "data": {
        "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
        "state": {
            "status": {"kind": "category", "dynamics": "table"},
            "region": {"kind": "category", "dynamics": "static"},
            "told": {"kind": "numeric", "dynamics": "learned"},
        },
    },
    "anchor": {"action": "none"},
    "discount": 0.9,
    "attention": {
        "default": {"member": {"status": ["in"]}, "none": {"status": ["in", "out"]}}, "by": ["region"],
        "shifters": ["told"],
    },
}  # fmt: skip
FRAME = pd.DataFrame({"status": ["in", "out", "new"], "region": ["n", "s", "n"], "told": [0.0, 1.0, 3.0]})


def test_lambda_by_levels_and_shifters_and_the_default_that_comes_first():
    config = Config.model_validate(STUDY)
    schema = fit_schema(FRAME, config)
    state = schema.encode(FRAME)
    assert schema.default(state).tolist() == [1, 0, -1]  # in state `in` the first of two conditions that hold
    assert torch.equal(StateSchema.from_json(schema.to_json()).default(state), schema.default(state))
    logit = AttentionLogit(schema, config.attention)
    logit.standardise(state)
    assert logit.terms.names == ("1", "region=s", "told")
    torch.testing.assert_close(logit.features(state).mean(0), torch.tensor([1.0, 0.0, 0.0]))
    torch.nn.init.constant_(logit.weight, 1.0)
    expected = (1 + logit.features(state)[:, 1:].sum(1)).sigmoid()
    torch.testing.assert_close(logit.inertia(state).attention, expected)
    alone = AttentionLogit(schema, config.attention.model_copy(update={"by": (), "shifters": ()}))
    assert alone.terms.names == ("1",) and torch.equal(alone(state), torch.full((3,), 0.5))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention": {"default": {"memer": {}}}}, "did you mean 'member'"),
        ({"attention": {"default": {"member": {"statis": ["in"]}}}}, "did you mean 'status'"),
        ({"attention": {"default": {"member": {}}, "by": ["told"]}}, "has no levels"),
        ({"attention": {"default": {"member": {}}, "by": ["region"], "shifters": ["region"]}}, "is in `attention.by`"),
        ({"attention": {"default": {"member": {}}, "shifters": ["tol"]}}, "did you mean 'told'"),
        ({"reward": {"columns": ["told"]}}, "a shifter moves attention alone"),
        ({"types": 2}, "hidden types yet"),
        ({"estimation": {"refit": {"rounds": 0}}}, "rounds` must be at least 1"),
        ({"data": STUDY["data"] | {"active": "a"}, "attention": None}, "say by `attention.default`"),
        ({"attention": {"default": {}}}, "at least 1"),
    ],
)
def test_options_that_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        Config.model_validate(STUDY | change)
