"""Functions of the basis in one pass: those of the features one by one, whatever the terms and however many."""

from __future__ import annotations

import pytest
import torch

from irl.config import Config
from irl.counterfactual import forward as module
from irl.counterfactual.forward import Forward
from irl.data.schema import Column, StateSchema
from irl.fitted import new_networks

COLUMNS = (
    Column(name="region", kind="category", dynamics="static", labels=("a", "b", "c"), maximum=2.0),
    Column(name="price", kind="numeric", dynamics="static", assigned="randomised", centre=9, scale=2, maximum=12),
    Column(name="status", kind="category", dynamics="table", labels=("out", "in"), maximum=1.0, parents=(2,)),
    Column(name="use", kind="ordinal", dynamics="learned", labels=("0", "2", "5"), maximum=2.0),
    Column(name="visits", kind="count", dynamics="learned", centre=3.0, scale=4.0, maximum=20.0),
    Column(name="same", kind="category", dynamics="static", labels=("only",)),
)  # fmt: skip
ACTIONS = ("none", "basic", "full")


def model_of(reward: dict, hidden: tuple[int, ...]):
    state = {c.name: {"kind": c.kind, "dynamics": c.dynamics} for c in COLUMNS}
    state["use"]["levels"] = ["0", "2", "5"]
    state["price"]["assigned"] = "randomised"
    steps = {name: {"hidden": [7, 5]} for name in ("policy", "reward", "dynamics")} | {"anchor_q": {"hidden": hidden}}
    data = {"path": "none", "member": "id", "period": "t", "action": "a", "actions": ACTIONS, "state": state}
    config = Config.model_validate(
        {
            "data": data,
            "anchor": {"action": "none", "reward": 0.0},
            "discount": 0.9,
            "reward": reward,
            "estimation": steps,
        }
    )
    schema = StateSchema(columns=COLUMNS, actions=ACTIONS, anchor=0, anchor_reward=0.0, terminal={})
    torch.manual_seed(1)
    return new_networks(config, schema)


def states(number: int) -> torch.Tensor:
    """Levels, the unseen ones of categories included, and numbers."""
    generator = torch.Generator().manual_seed(0)
    columns = [
        torch.randint(0, c.levels + (c.kind == "category"), (number,), generator=generator).float()
        if c.discrete
        else c.minimum + (c.maximum - c.minimum) * torch.rand(number, generator=generator)
        for c in COLUMNS
    ]
    columns[4] = columns[4].round()
    return torch.stack(columns, 1)


@pytest.mark.parametrize("functions", [2, 60])
@pytest.mark.parametrize(
    ("reward", "hidden"),
    [({}, (6,)), ({"structure": "linear"}, (6,)), ({"structure": "additive", "benefits": ["use", "visits"]}, ())],
)
def test_it_is_the_basis_times_the_weights(reward, hidden, functions):
    model, state = model_of(reward, hidden), states(300)
    phi = model.basis(state).double()
    weights = torch.randn(functions, phi.shape[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    forward = Forward(model, weights)
    assert (forward(state).T - phi @ weights.T).abs().max() < 1e-4
    assert forward(states(0)).shape == (functions, 0)


def test_few_functions_take_the_bilinear_form_and_many_the_products():
    model = model_of({}, (6,))
    width = model.basis(states(1)).shape[1]
    assert Forward(model, torch.ones(2, width)).tables.weight is None
    assert Forward(model, torch.ones(200, width)).tables.weight is not None


def test_few_left_factors_cover_all_products():
    products = [(), (0,), (1,), (0, 2), (0, 3), (1, 2), (0, 2, 4), (0, 2, 5), (0, 2, 6)]
    split = module._split(tuple(products))
    assert split[()] == ((), None) and split[0,] == ((), 0)
    assert {split[0, 2, last] for last in (4, 5, 6)} == {((0, 2), 4), ((0, 2), 5), ((0, 2), 6)}
    for product, (left, right) in split.items():
        assert tuple(sorted((*left, *(() if right is None else (right,))))) == product


def test_states_are_taken_in_parts_that_fit_a_cache(monkeypatch):
    model, state = model_of({}, (6,)), states(50)
    forward = Forward(model, torch.ones(1, model.basis(state).shape[1]))
    whole = forward(state)
    monkeypatch.setattr(module, "ROWS", 16)
    assert torch.allclose(forward(state), whole, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kernels", "graphs"])
def test_compiled_it_gives_the_same(mode):
    for seed, (reward, hidden, functions) in enumerate([({}, (6,), 2), ({"structure": "linear"}, (6,), 60)]):
        model, state = model_of(reward, hidden), states(300)
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(functions, model.basis(state).shape[1], generator=generator, dtype=torch.float64)
        plain, compiled = Forward(model, weights), Forward(model, weights, mode)
        assert compiled._pass is module.compiled(mode) and plain._pass is module.passed
        for rows in (300, 20, 1):
            assert torch.allclose(compiled(state[:rows]), plain(state[:rows]), rtol=1e-4, atol=1e-5)
