"""On a GPU: the same sums, the same answers as on a CPU up to rounding, and every script runs there. Without a GPU on
the pretended device of ``pretended.py``, where mixing tensors of both sides fails as it would on one."""

from __future__ import annotations

import re
import runpy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from pretended import DEVICE, pretended

import irl
from irl import evaluation
from irl.counterfactual.streams import Streams

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "checkpoints" / "membership"
of_scripts = runpy.run_path(str(ROOT / "tests" / "test_scripts.py"), run_name="scripts")
script, write = of_scripts["script"], of_scripts["write"]
GPU = ("--device", "cuda")
ATTENTION = {"default": {"none": {"status": ["out"]}, "monthly": {"status": ["monthly"]},
                         "annual": {"status": ["annual"]}}}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[torch.device]:
    """What ``--device cuda`` stands for."""
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    with pytest.MonkeyPatch.context() as patch, pretended(patch):
        yield DEVICE


@pytest.fixture(scope="module")
def study(tmp_path_factory, gpu) -> Path:
    """A folder with panel.parquet, study.yaml, scenario.yaml and a run trained on the GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    of_scripts["panel"]().to_parquet(folder / "panel.parquet")
    own = of_scripts["STUDY"]
    write(folder / "study.yaml", own | {"data": own["data"] | {"path": str(folder / "panel.parquet")}})
    write(folder / "scenario.yaml", of_scripts["SCENARIO"])
    assert script("train", "--config", folder / "study.yaml", "--run", folder / "run", *GPU) == 0
    return folder


@pytest.mark.parametrize(
    "wrong",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([there, here]),
        lambda here, there: here[there.long()],
        lambda here, there: there.normal_(generator=torch.Generator()),
        lambda here, there: there.numpy(),
    ],
    ids=["sum", "cat", "index", "generator", "numpy"],
)
def test_the_device_refuses_what_is_not_on_it(wrong, gpu):
    here = torch.zeros(3)
    there = here.to(gpu)
    assert there.device.type == gpu.type and (there + 1).sum().item() == 3 and there[here.long()].tolist() == [0.0] * 3
    with pytest.raises((RuntimeError, TypeError)):
        wrong(here, there)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_kernel_has_the_same_sums(dtype, near, gpu):
    generator = torch.Generator().manual_seed(0)
    n, d, actions, draws = 3000, 40, 3, 5
    phi, phi_next = (torch.randn(n, d, generator=generator).to(dtype) for _ in range(2))
    phi[:, 0] = phi_next[:, 0] = 1
    place = torch.randint(0, n, (n, draws), generator=generator)
    discount = torch.rand(n, draws, generator=generator).to(dtype)
    target, weight = torch.randn(n, 2, generator=generator).to(dtype), torch.rand(n, generator=generator).to(dtype)
    action = torch.randint(0, actions, (n,), generator=generator)
    policy = torch.rand(n, actions, generator=generator).to(dtype)
    parts = (phi, phi_next, discount, target, weight, action, policy / policy.sum(1, keepdim=True))

    def sums(device: torch.device) -> evaluation.Sums:
        rows = evaluation.Rows(*(part.to(device) for part in parts), place=place.to(device))
        return evaluation.accumulate([rows], actions=actions)

    here, there = sums(torch.device("cpu")), sums(gpu)
    for name, one in vars(here).items():
        if isinstance(one, torch.Tensor):
            other = getattr(there, name).cpu()
            assert (one - other).norm() <= near * one.norm(), name


def test_random_numbers_are_those_of_a_cpu(gpu):
    here, there = (
        Streams(3, range(1024, 3072), periods=4, width=7, device=device) for device in (torch.device("cpu"), gpu)
    )
    assert all(torch.equal(here(t), there(t).cpu()) for t in range(4))


def test_a_run_trained_here_is_like_one_of_a_cpu_and_loads_there(study):
    run, other = study / "run", study / "cpu"
    assert script("train", "--config", study / "study.yaml", "--run", other, "--device", "cpu") == 0
    frame = of_scripts["panel"]()
    one, two = irl.load(run), irl.load(other)
    assert one.device.type == "cpu"
    apart = (one.policy(frame) - two.policy(frame)).abs().to_numpy()
    assert apart.max() < 0.05, "other rounding, of a panel of random choices"


@pytest.mark.gpu
@pytest.mark.parametrize("options", [(), ("--compile", "kernels"), ("--compile", "graphs")])
def test_a_scenario_has_the_answer_of_a_cpu(tmp_path, options):
    asked = yaml.safe_load((ROOT / "configs" / "scenarios" / "annual_dearer.yaml").read_text(encoding="utf-8"))
    scenario = write(tmp_path / "scenario.yaml", asked | {"members": 4096, "periods": 12})
    ask = ("counterfactual", "--run", SHIPPED, "--scenario", scenario)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert script(*ask, "--device", "cpu", "--out", tmp_path / "cpu") == 0
        assert script(*ask, *GPU, *options, "--out", tmp_path / "gpu") == 0
    here, there = (pd.read_parquet(tmp_path / name / "outcomes.parquet") for name in ("cpu", "gpu"))
    keys = ["case", "segment", "period", "outcome"]
    both = here.merge(there, on=keys, suffixes=("", "_there"))
    assert len(both) == len(here) == len(there)
    shares = both[both["outcome"].str.startswith("share")]
    assert len(shares) and (shares["scenario"] - shares["scenario_there"]).abs().max() < 5e-3
    surplus = both[both["outcome"] == "surplus"]
    assert len(surplus) and ((surplus["change"] - surplus["change_there"]).abs() < 1e-2).all()


def test_every_script_runs(study):
    run = ("--run", study / "run", *GPU)
    assert script("counterfactual", *run, "--scenario", study / "scenario.yaml") == 0
    assert script("falsify", *run) == 0
    assert script("bootstrap", *run, "--replicas", "3") == 0
    assert script("sensitivity", *run, "--rewards", "0", "--discounts", "0.9") == 0
    assert script("predict", *run, "--data", study / "panel.parquet", "--out", study / "predicted.parquet") == 0
    assert script("backtest", "--config", study / "study.yaml", "--run", study / "tested", "--until", "6", *GPU) == 0
    assert script("report", "--run", study / "run") == 0


@pytest.mark.parametrize(
    "options",
    [
        ("types=2",),
        (f"attention={ATTENTION}",),
        ("reward={structure: additive, benefits: [status, video]}", "estimation.refit.rows=200"),
        pytest.param(("reward.structure=linear", "estimation.refit.rows=200"), marks=pytest.mark.gpu),
        pytest.param(("estimation.anchor_q.solver=fqi",), marks=pytest.mark.gpu),
        pytest.param(("--precision", "bf16-mixed"), marks=pytest.mark.gpu),
        pytest.param(("--compile",), marks=pytest.mark.gpu),
    ],
    ids=lambda options: options[-1].split("=")[0].strip("-"),
)
def test_every_kind_of_study_is_trained(study, options):
    run = study / f"run-{re.sub('[^a-z0-9]+', '-', ' '.join(options))[:40]}"
    train = ("train", "--config", study / "study.yaml", "--run", run, *GPU)
    assert script(*train, *(o.replace("'", '"') for o in options)) == 0
    assert script("counterfactual", "--run", run, *GPU, "--scenario", study / "scenario.yaml") == 0
    if "additive" in options[0]:
        assert script("attribution", "--run", run, *GPU) == 0
