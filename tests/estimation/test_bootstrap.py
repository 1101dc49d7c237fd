"""Member bootstrap: everybody once is the fit, a replica the refit of its panel, the spread the analytic error."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from irl import runs
from irl.config import Config, InputError
from irl.data.panel import panel_from_frame
from irl.estimation import inference
from irl.estimation.bootstrap import DRAWS, RESULT, bootstrap
from irl.estimation.dynamics import fit_dynamics
from irl.estimation.pipeline import train
from irl.estimation.refit import fit_refit
from irl.estimation.resampling import equations_of, multiplicities, solved
from irl.estimation.training import Workbench
from irl.fitted import new_networks
from irl.transitions import observed

ROOT = Path(__file__).resolve().parents[2]
BENCH = Workbench(device=torch.device("cpu"), seed=0)
TINY = {"hidden": [8], "max_epochs": 4, "batch_size": 512}
MEMBERS, PERIODS = 250, 10


def study(path: Path, kind: str) -> Config:
    """``kind`` of the use: an ordinal, whose dynamics are counted, or a number."""
    use = {"kind": "ordinal", "levels": 3, "dynamics": "table"}
    return Config.model_validate(
        {
            "data": {
                "path": str(path), "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
                "segment": "region",
                "state": {
                    "region": {"kind": "category", "dynamics": "static"},
                    "use": use if kind == "ordinal" else {"kind": "numeric", "dynamics": "learned"},
                },
            },
            "anchor": {"action": "none", "reward": 0.0},
            "reward": {"structure": "linear", "benefits": ["use"]},
            "discount": 0.8,
            "estimation": {
                "policy": TINY, "anchor_q": TINY | {"rounds": 1}, "reward": TINY, "dynamics": TINY,
                "refit": {"rows": 600, "rounds": 4},
            },
        }
    )  # fmt: skip


def frame(kind: str) -> pd.DataFrame:
    """Members choose more the more they use, and use more the more they are members."""
    rng = np.random.default_rng(0)
    south, use, rows = rng.integers(0, 2, MEMBERS), rng.integers(0, 3, MEMBERS).astype(float), []
    for month in range(PERIODS):
        member = rng.random(MEMBERS) < 1 / (1 + np.exp(0.8 - 0.7 * use + 0.4 * south))
        columns = {"id": np.arange(MEMBERS), "month": month, "region": np.array(["north", "south"])[south], "use": use}
        rows.append(pd.DataFrame(columns | {"plan": np.array(["none", "member"])[member.astype(int)]}))
        if kind == "ordinal":
            use = (use + np.where(member, 1, -1) * (rng.random(MEMBERS) < 0.4)).clip(0, 2)
        else:
            use = 0.7 * use + 0.6 * member + rng.normal(0, 0.3, MEMBERS)
    found = pd.concat(rows)
    return found.astype({"use": int}) if kind == "ordinal" else found


@pytest.fixture(scope="module", params=["ordinal", "numeric"])
def fitted(request, tmp_path_factory):
    return fit(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    return fit("ordinal", tmp_path_factory.mktemp("counted"))


def fit(kind, folder):
    frame(kind).to_parquet(folder / "data.parquet")
    config = study(folder / "data.parquet", kind)
    panel = panel_from_frame(frame(kind), config)
    model = train(config, panel, folder / "run", device=BENCH.device)
    precisions = runs.read_json(folder / "run" / runs.LAST)["refit"]["precisions"]
    return folder / "run", model, panel, equations_of(model, panel, precisions)


def drawn(replicas: int, seed: int = 0) -> torch.Tensor:
    return torch.stack([multiplicities(MEMBERS, b, seed=seed) for b in range(replicas)])


def test_one_of_everybody_is_the_fit(fitted):
    _, model, _, equations = fitted
    found = solved(equations, torch.ones(1, MEMBERS))
    assert found.rounds == 1
    # both stop within a Newton step of the same fixed point, standard errors being some .1
    torch.testing.assert_close(found.theta[0], model.refit.theta, rtol=1e-5, atol=1e-5)


def test_the_spread_is_the_analytic_standard_error(fitted):
    _, model, _, equations = fitted
    found = solved(equations, drawn(300))  # its own error: 4 %
    assert bool((found.change < 0.01).all())
    ratio = found.theta[:, 1].std(0) / model.refit.covariance.diagonal().sqrt()
    assert ((ratio > 0.75) & (ratio < 1.25)).all(), ratio


def test_a_replica_is_the_refit_of_its_panel(counted):
    """Members copied as often as they were drawn, dynamics and refit fitted anew on the same features."""
    _, model, _, equations = counted
    counts = drawn(3)
    found = solved(equations, counts).theta[:, 1]
    se, distance = model.refit.covariance.diagonal().sqrt(), []
    original = frame("ordinal")
    for b in range(len(counts)):
        copies = [
            original[counts[b].numpy()[original["id"]] > c].assign(id=lambda f, c=c: f["id"] + 1000 * c)
            for c in range(int(counts[b].max()))
        ]
        resampled = panel_from_frame(pd.concat(copies), model.config, schema=model.schema)
        nobody = torch.arange(resampled.n_rows) < PERIODS
        dynamics, _ = fit_dynamics(resampled, nobody, model.config.estimation.dynamics, bench=BENCH)
        fresh = replace(model, dynamics=dynamics, refit=new_networks(model.config, model.schema).refit)
        again, _ = fit_refit(fresh, resampled, nobody, model.config.estimation.refit, bench=BENCH)
        distance.append((again.theta[1] - found[b]) / se)
        assert float(((again.theta[1] - model.refit.theta[1]) / se).abs().max()) > 0.3, "they differ from the fit"
    assert float(torch.stack(distance).abs().max()) < 0.2, distance


def test_observed_transitions_shift_what_follows_as_in_the_analytic_errors(fitted):
    """To first order the replicas' scores move by the clusters' transition scores, as often as each was drawn more."""
    _, model, panel, equations = fitted
    counts = drawn(5)
    flat = equations.flat.T.contiguous()
    once = torch.ones(len(flat), len(equations.choices.rows))
    _, policy = equations.score(torch.zeros_like(flat), once)
    left = equations.curvature(flat, policy, once).T  # how what follows moves the scores
    through = inference._through(model, observed(panel), left)
    expected = (counts - 1) @ inference._transition_scores(model, panel, through)
    shift = equations._shift(counts)
    ratios, used = equations.dynamics(counts)
    if ratios:  # frequencies in cells were counted again instead
        assert [r.column for r in ratios] == [1] and not bool(used.any())
    else:
        assert model.schema.columns[1].kind == "numeric" and torch.equal(used, shift)
    found = shift @ left
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_replicas_are_the_same_for_a_seed_alone_or_together(fitted):
    *_, equations = fitted
    assert torch.equal(drawn(4), drawn(4)) and not torch.equal(drawn(1), drawn(1, seed=1))
    assert bool((drawn(4).sum(1) == MEMBERS).all()) and not torch.equal(*drawn(2))
    together, alone = solved(equations, drawn(4)).theta, solved(equations, drawn(4)[2:3]).theta
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=2e-3)


def test_members_never_drawn_do_not_count(fitted):
    """Whatever those chose who count for nothing, a replica's scores stay."""
    *_, panel, equations = fitted
    counts = drawn(1)
    out = (counts[0] == 0)[panel.member]
    other = replace(panel, action=torch.where(out & panel.free, 1 - panel.action, panel.action))
    changed = replace(equations, panel=other, choices=replace(equations.choices, panel=other, cache={}))
    nothing = torch.zeros(1, len(equations.matrix), dtype=torch.float64)
    weight = counts[:, panel.cluster[panel.free]].float()
    torch.testing.assert_close(changed.score(nothing, weight)[0], equations.score(nothing, weight)[0])
    everyone = changed.score(nothing, None)[0] - equations.score(nothing, None)[0]
    assert float(everyone.abs().max()) > 1


def test_the_folder_holds_every_quantity_and_goes_on(fitted):
    folder, model, panel, _ = fitted
    first = bootstrap(folder, model, panel, replicas=20, seed=3)
    assert first == runs.read_json(folder / RESULT) and first["clusters"] == MEMBERS and first["unconverged"] == 0
    kinds = [(q["kind"], q["segment"], q["name"]) for q in first["quantities"]]
    assert ("reward", "north", "") in kinds and ("contribution", "all", "use") in kinds and len(kinds) == 9
    metrics = runs.read_json(folder / runs.LAST)
    mean = metrics["reward_summary"]["member"]["north"]
    found = first["quantities"][kinds.index(("reward", "north", ""))]
    assert found["estimate"] == pytest.approx(mean["mean"], rel=1e-4) and found["se"] == pytest.approx(mean["se"])
    assert 0.5 < found["ratio"] < 2 and found["low"] < found["estimate"] < found["high"]
    with pytest.raises(InputError, match="--overwrite"):
        bootstrap(folder, model, panel, replicas=20, seed=3)
    (folder / RESULT).unlink()
    asked = []
    more = bootstrap(folder, model, panel, replicas=30, seed=3, tick=lambda done, rounds: asked.append(done))
    assert min(asked) == 20, "the 20 that were stored are kept"
    other = bootstrap(folder, model, panel, replicas=30, seed=4, overwrite=True)
    assert more["quantities"][0]["bootstrap_se"] != other["quantities"][0]["bootstrap_se"]
    for name in (RESULT, DRAWS):
        (folder / name).unlink()


def test_other_data_too_few_replicas_and_unfinished_runs_are_refused(fitted, tmp_path):
    folder, model, panel, _ = fitted
    with pytest.raises(InputError, match="at least 2"):
        bootstrap(folder, model, panel, replicas=1, seed=0)
    with pytest.raises(InputError, match="not what"):
        bootstrap(folder, model, panel.take_members(torch.arange(MEMBERS) > 0), replicas=2, seed=0)
    with pytest.raises(InputError, match="no refit"):
        bootstrap(folder, replace(model, refit=None), panel, replicas=2, seed=0)
    with runs.start_run(tmp_path / "run"):
        pass
    script = [sys.executable, str(ROOT / "scripts" / "bootstrap.py"), "--run", str(tmp_path / "run")]
    result = subprocess.run(script, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and "not finished" in result.stderr and "Traceback" not in result.stderr
