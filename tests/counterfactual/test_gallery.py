"""The shipped scenarios of the membership study fit that study, and the simulated market can answer them exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from irl import membership
from irl.config import load_config
from irl.counterfactual.intervention import compile_scenario
from irl.counterfactual.population import check_population
from irl.data import panel_from_frame
from irl.membership.scenarios import scenario_edit
from irl.membership.tastes import YEAR
from irl.scenario import cases, load_scenario

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GALLERY = [path for path in sorted((CONFIGS / "scenarios").glob("*.yaml")) if not path.stem.startswith("union")]


@pytest.fixture(scope="module")
def schema():
    """Of a panel of members who choose at random: only the columns and labels matter here."""
    market = membership.Market(price_factors=(1.0, 1.2))
    cells = tuple(market.cells())
    menu = market.available().double()
    policy = (menu / menu.sum(-1, keepdim=True)).expand(len(cells), YEAR, -1, -1)
    kernels = torch.stack([market.kernels(cell.segment) for cell in cells])
    at_random = membership.MarketSolution(market, cells, policy, policy, policy[..., 0], menu > 0, kernels, error=0.0)
    frame = membership.simulate(at_random, members=300, periods=13, seed=0, burn_in_years=1)
    return panel_from_frame(frame, load_config(CONFIGS / "membership.yaml", [])).schema


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_it_fits_the_study_and_the_market(schema, path):
    scenario = load_scenario(path)
    check_population(scenario.population, schema)
    for case in cases(scenario).values():
        assert compile_scenario(case, schema).changes == case.changes
        assert callable(scenario_edit(membership.Market(), case))


def test_there_is_something_to_see():
    assert {"annual_dearer", "gaming_gen_z", "no_monthly_plan"} <= {path.stem for path in GALLERY}
