"""A world small enough to be solved exactly: five places, two tiers, three actions, and a model that knows it exactly.

out, in: all actions; deep: none and monthly; locked: monthly only, no choice; gone: terminal. The networks are set by
hand to one feature per place and tier, so that the kernel can represent every value of this world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from irl import tabular
from irl.config import Config
from irl.counterfactual.intervention import Intervention, compile_scenario
from irl.data.panel import panel_from_frame
from irl.data.schema import Column, StateSchema
from irl.fitted import FittedModel, new_networks
from irl.scenario import scenario_from
from irl.transitions import Reached, States, Transitions

PLACES = ("out", "in", "deep", "locked", "gone")
OUT, IN, DEEP, LOCKED, GONE = range(5)
ACTIONS = ("none", "monthly", "annual")
TIERS = 2
SHARP = 160.0
"""Size of the hand-set weights: SiLU(SHARP / 4) is SHARP / 4 in float32, and SiLU(-SHARP / 4) is 0."""


@dataclass(frozen=True)
class World:
    """The model and its truth: reward[5, 2, 3] by place, tier and action; transition[5, 2, 3, 5] to the next place."""

    model: FittedModel
    reward: Tensor
    transition: Tensor

    @property
    def schema(self) -> StateSchema:
        return self.model.schema

    def intervention(self, *changes: Mapping[str, Any]) -> Intervention:
        if not changes:
            return Intervention(self.schema, ())
        return compile_scenario(scenario_from({"name": "x", "changes": list(changes)}), self.schema)

    def states(self) -> Tensor:
        """state[10, 2]: every place and tier, tier fastest."""
        return torch.tensor([[float(p), float(t)] for p in range(5) for t in range(TIERS)])

    def menu(self) -> Tensor:
        """bool[10, 3], empty where terminal."""
        rows = [[1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]]
        return torch.tensor(rows, dtype=torch.bool).repeat_interleave(TIERS, 0)

    def mdp(
        self, *, reward: Tensor | None = None, available: Tensor | None = None, tier: int | None = None
    ) -> tabular.FiniteMDP:
        """The exact problem over the ten states; ``tier``: the one that all members face."""
        reward = self.reward if reward is None else reward
        transition = self.transition
        if tier is not None:
            reward = reward[:, tier : tier + 1].expand(-1, TIERS, -1)
            transition = transition[:, tier : tier + 1].expand(-1, TIERS, -1, -1)
        full = torch.einsum("ptaq,tu->ptaqu", transition, torch.eye(TIERS, dtype=torch.float64)).reshape(10, 3, 10)
        return tabular.FiniteMDP(
            reward=reward.reshape(10, 3),
            available=self.menu() if available is None else available,
            expectation=tabular.dense_expectation(full),
            discount=self.model.config.discount,
            temperature=self.model.config.temperature,
        )

    def transitions(self) -> Transitions:
        """Every transition from free choice to free choice or end, weighted by its exact probability."""
        rows: list[tuple[float, ...]] = []
        for place in (OUT, IN, DEEP):
            for tier in range(TIERS):
                for action in self.menu()[place * TIERS + tier].nonzero().squeeze(1).tolist():
                    mass, steps = self.transition[place, tier, action].clone(), 1
                    while steps == 1 or mass.sum() > 1e-9:
                        for following in (OUT, IN, DEEP, GONE):
                            rows.append((place, tier, action, following, steps, float(mass[following])))
                        mass, steps = mass[LOCKED] * self.transition[LOCKED, tier, 1], steps + 1
        place_, tier_, action_, following_, steps_, weight_ = torch.tensor([r for r in rows if r[-1] > 0]).T
        nowhere = torch.zeros(len(place_), dtype=torch.long)
        return Transitions(
            state=torch.stack([place_, tier_], 1),
            action=action_.long(),
            reached=Reached.by(torch.stack([following_, tier_], 1).unsqueeze(1), nowhere),
            steps=steps_.unsqueeze(1),
            ends=(following_ == GONE).unsqueeze(1),
            segment=nowhere,
            weight=weight_ / weight_.mean(),
        )

    def everywhere(self, times: int) -> States:
        """Every state, so many times, as rows to draw from."""
        state = self.states().repeat(times, 1)
        return States(state, torch.zeros(len(state), dtype=torch.long), torch.ones(len(state)))

    def panel_frame(self, *, members: int, periods: int, seed: int) -> pd.DataFrame:
        """Members who choose at random, until they are gone (which is their last row)."""
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for member in range(members):
            place, tier, region = member % 3, (member // 3) % 2, ("north", "south")[(member // 6) % 2]
            for period in range(periods):
                menu = self.menu()[place * TIERS].double()
                action = int(torch.multinomial(menu, 1, generator=generator)) if menu.any() else 0
                rows.append((member, period, ACTIONS[action], PLACES[place], tier, region))
                if place == GONE:
                    break
                place = int(torch.multinomial(self.transition[place, tier, action], 1, generator=generator))
        return pd.DataFrame(rows, columns=["id", "month", "plan", "place", "tier", "region"])


def make_world(*, tier_moves_places: bool = False, anchor_reward: float = 0.3, discount: float = 0.9) -> World:
    generator = torch.Generator().manual_seed(7)
    reward = torch.randn(5, TIERS, 3, generator=generator, dtype=torch.float64)
    reward[:, :, 0], reward[LOCKED] = anchor_reward, 0.0  # a contract's lump is paid where it is chosen
    transition = torch.rand(5, TIERS, 3, 5, generator=generator, dtype=torch.float64)
    transition[..., GONE] *= 0.2
    if not tier_moves_places:
        transition[:] = transition[:, :1]
    transition = transition / transition.sum(-1, keepdim=True)
    config = Config.model_validate(
        {
            "data": {
                "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ACTIONS,
                "available": {"none": {"place": ["out", "in", "deep", "gone"]}, "annual": {"place": ["out", "in"]}},
                "terminal": {"place": "gone"},
                "segment": "region",
                "state": {
                    "place": {
                        "kind": "category", "dynamics": "table",
                        "parents": ["place", "tier"] if tier_moves_places else ["place"],
                    },
                    "tier": {"kind": "ordinal", "levels": TIERS, "dynamics": "static", "assigned": "randomised"},
                },
            },
            "anchor": {"action": "none", "reward": anchor_reward},
            "discount": discount,
            "temperature": 0.8,
            "estimation": {name: {"hidden": [10]} for name in ("policy", "anchor_q", "reward", "dynamics")}
            | {"refit": {"rounds": 0}},
        }
    )  # fmt: skip
    place = Column(
        name="place", kind="category", dynamics="table", labels=PLACES, maximum=4.0,
        parents=(0, 1) if tier_moves_places else (0,),
    )  # fmt: skip
    tier = Column(name="tier", kind="ordinal", dynamics="static", assigned="randomised", labels=("0", "1"), maximum=1.0)
    data = config.data
    schema = StateSchema(
        columns=(place, tier),
        actions=ACTIONS,
        anchor=0,
        anchor_reward=anchor_reward,
        segment_columns=("region",),
        segments=("north", "south"),
        available=tuple((ACTIONS.index(a), condition) for a, condition in data.available.items()),
        terminal=data.terminal,
    )
    model = new_networks(config, schema)
    with torch.no_grad():
        for network in (model.policy_network, model.anchor_network, model.reward_network):
            layer = network.trunk.layers[0]
            layer.weight.zero_()
            layer.bias.fill_(-1.5 * SHARP / 2)
            for unit, (p, t) in enumerate((p, t) for p in range(5) for t in range(TIERS)):
                layer.weight[unit, p] = layer.weight[unit, len(PLACES) + t] = SHARP / 2  # slots: places, then tiers
        model.policy_network.head.weight.zero_()
        model.policy_network.head.bias.zero_()
        head = model.reward_network.head
        head.bias.zero_()
        head.weight.copy_(reward.reshape(10, 3).T / (SHARP / 4))
        table = model.dynamics.table_0
        assert isinstance(table, Tensor)
        table.zero_()
        cells = transition.new_zeros(len(PLACES) + 1, TIERS + 1, 3, len(PLACES))
        cells[:5, :TIERS] = transition
        table.copy_(cells.flatten(0, 1) if tier_moves_places else cells[:, 0])
    return World(model, reward, transition)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def moving_world() -> World:
    """The same, but for the tier, which moves the places: changing it changes the dynamics."""
    return make_world(tier_moves_places=True)


@pytest.fixture(scope="session")
def panel_and_frame(world: World) -> tuple[Any, pd.DataFrame]:
    frame = world.panel_frame(members=120, periods=8, seed=3)
    return panel_from_frame(frame, world.model.config, schema=world.schema), frame
