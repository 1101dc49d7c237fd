"""Several processes: the same sums and gradients as one, equal weights in all, no waiting for batches that another does
not have; what is refused; a run that was killed goes on to the same weights. Jobs are in ``several.py``."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import lightning
import pytest
import torch
import yaml

from irl import processes, runs
from irl.config import Config, InputError
from irl.data.panel import Panel, part_of
from irl.estimation.dealt import dealt
from irl.estimation.pipeline import held_out_rows, train

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")


def job(name: str, folder: Path) -> None:
    """The job in a Python of its own; processes that wait for ever fail it after five minutes."""
    subprocess.run([sys.executable, HERE / "several.py", name, folder], check=True, timeout=1200)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> tuple[dict, dict, dict]:
    """What one process came to, and each of two."""
    folder = tmp_path_factory.mktemp("numbers")
    job("numbers", folder)
    one, first, second = (torch.load(folder / f"numbers-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    return one, first, second


def test_sums_over_processes_are_those_of_one(numbers):
    one, *several = (each["sums"] for each in numbers)
    for both in several:
        for name in ("kernel", "fewer", "logit"):
            for alone, together in zip(one[name], both[name], strict=True):
                assert apart(alone.double(), together.double()) < (1e-5 if name == "logit" else 1e-9), name
        assert torch.allclose(one["choice"], both["choice"], rtol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(several[0]["logit"], several[1]["logit"], strict=True))


def test_gradients_of_the_same_batch_are_those_of_one(numbers):
    one, first, second = (each["one batch"] for each in numbers)
    assert first["gradients"].shape == (1, 41)
    for each in (first, second):
        assert apart(one["gradients"], each["gradients"]) < 1e-6
        assert each["history"] == pytest.approx(one["history"], rel=1e-5)


@pytest.mark.parametrize("rows", ["uneven", "many"])
def test_processes_have_as_many_batches_and_end_with_the_same_weights(numbers, rows):
    one, first, second = (each[rows] for each in numbers)
    batches = {"uneven": 20 * 6, "many": 2 * 63}[rows]
    assert len(one["gradients"]) == len(first["gradients"]) == batches
    assert torch.equal(first["gradients"], second["gradients"]) and first["history"] == second["history"]
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
    assert first["history"] == pytest.approx(one["history"], rel=0.1) and first["history"] != one["history"]


def test_one_process_says_what_is_wrong_and_all_end(tmp_path):
    command = [sys.executable, HERE / "several.py", "wrong", tmp_path]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1200)
    said = [line for line in found.stderr.splitlines() if line.startswith("error")]  # torch's store may log its end
    assert said == ["error: this cannot be"] * 2 and "Traceback" not in found.stderr, found.stderr


def study(**changes: object) -> tuple[Config, Panel]:
    found = runpy.run_path(str(HERE / "several.py"), run_name="several")
    return Config.model_validate(found["STUDY"] | changes), found["panel"]()


@pytest.mark.parametrize("number", [2, 3, 7])
def test_members_are_dealt_out_whole_and_rows_evenly(number):
    _, panel = study()
    parts = [part_of(panel, k, number) for k in range(number)]
    assert torch.equal(torch.cat([p.origin for p in parts]).unique(), torch.arange(panel.n_members))
    rows = [p.n_rows for p in parts]
    assert sum(rows) == panel.n_rows and max(rows) - min(rows) <= int(panel.member.bincount().max())
    held_out = held_out_rows(panel, 0.25, 0)
    for part in parts:
        mine = (panel.member.unsqueeze(1) == part.origin.unique()).any(1)
        assert torch.equal(part.state, panel.state[mine]) and torch.equal(part.origin, panel.member[mine])
        assert torch.equal(part.cluster, part.member)
        # how many there are is that of the last, which the process may not have: the processes tell each other
        everyone = replace(
            part, origin=torch.where(part.member == part.n_members - 1, panel.n_members - 1, part.origin)
        )
        last = part.member == part.n_members - 1
        assert torch.equal(held_out_rows(everyone, 0.25, 0)[~last], held_out[mine][~last])


def test_clusters_stay_together():
    _, panel = study()
    panel = replace(panel, cluster=panel.member // 3)
    parts = [part_of(panel, k, 2) for k in range(2)]
    for part in parts:
        assert len((part.origin // 3).unique()) == int(part.cluster.max()) + 1 == 20
    assert not set((parts[0].origin // 3).tolist()) & set((parts[1].origin // 3).tolist())
    with pytest.raises(InputError, match="3 processes cannot share 2 members"):
        part_of(replace(panel, cluster=panel.member % 2), 0, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"types": 2},
        {"attention": {"default": {"none": {"status": ["out"]}, "monthly": {"status": ["monthly"]}}}},
        {"estimation": {"falsification": True}},
    ],
)
def test_what_processes_cannot_do_is_refused_before_anything_is_written(changes, monkeypatch, tmp_path):
    config, panel = study(**changes)
    assert dealt(config, panel, CPU) is panel
    monkeypatch.setattr(processes, "group", lambda: (1, 2))
    with pytest.raises(InputError, match=rf"cannot be trained by several processes.*\n  `{next(iter(changes))}"):
        train(config, panel, tmp_path / "run", device=CPU)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("most", "expected"), [(10, [1, 3, 6]), (7, [0, 2, 5]), (100, [10, 30, 60]), (200, [10, 30, 60])]
)
def test_samples_of_all_rows_are_taken_in_proportion(most, expected, monkeypatch):
    rows = torch.tensor([10, 30, 60])
    monkeypatch.setattr(processes, "gathered", lambda own: rows)
    for k, (available, part) in enumerate(zip(rows.tolist(), expected, strict=True)):
        monkeypatch.setattr(processes, "group", lambda k=k: (k, 3))
        assert processes.own_part(most, available) == part


@pytest.mark.parametrize("given", [["--precision", "bf16-mixed", "--compile"], []])
def test_precision_and_compile_reach_the_trainer(given, monkeypatch, tmp_path):
    trainers, compiled = [], []

    class Trainer(lightning.Trainer):
        def __init__(self, **options):
            super().__init__(**options)
            trainers.append(self.precision)

    monkeypatch.setattr(lightning, "Trainer", Trainer)
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function.__name__) or function)
    found = runpy.run_path(str(HERE / "several.py"), run_name="several")
    found["frame"]().to_parquet(tmp_path / "panel.parquet")
    content = found["STUDY"] | {"data": found["STUDY"]["data"] | {"path": str(tmp_path / "panel.parquet")}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    arguments = ["--config", tmp_path / "study.yaml", "--run", tmp_path / "run", "--device", "cpu", *given]
    options = ["estimation.folds=1", "estimation.refit.rounds=0", "estimation.anchor_q.rounds=1", "reward={}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments), *options])
    runpy.run_path(str(HERE.parents[1] / "scripts/train.py"), run_name="__main__")
    assert trainers == ["bf16-mixed" if given else "32-true"] * 4
    assert compiled == (["total"] * 4 if given else [])


@pytest.mark.slow
def test_a_study_comes_to_about_the_same_as_in_one_process(tmp_path):
    """Parts of 3 to 47 rows a member; the tolerances are those of the README."""
    job("study", tmp_path)
    one = runs.read_json(tmp_path / "one" / runs.LAST)
    for name in ("two", *(["stored"] if find_spec("duckdb") else [])):  # stored: each reads its own buckets
        two = runs.read_json(tmp_path / name / runs.LAST)
        assert one.keys() == two.keys()
        counts = {k: v for k, v in two["panel"].items() if k not in ("processes", "sampling")}
        assert counts.items() <= one["panel"].items() and two["panel"]["processes"] == 2
        assert one["refit"]["choices"] == two["refit"]["choices"]
        for step, found in (("policy", "held_out_loss"), ("refit", "held_out_log_likelihood")):
            # another order of the members holds out others
            assert one[step][found] == pytest.approx(two[step][found], abs=0.005 if name == "two" else 0.1)
        for action in ("monthly", "annual"):
            for segment, alone in one["reward_summary"][action].items():
                both = two["reward_summary"][action][segment]
                assert abs(both["mean"] - alone["mean"]) < 0.1 * alone["se"]
                assert both["se"] == pytest.approx(alone["se"], rel=0.05)
                assert both["share_available"] == alone["share_available"]
        assert one["support"]["all"]["decisions"] == two["support"]["all"]["decisions"]
    first, second = (torch.load(tmp_path / f"two-{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["killed", "within"])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path, when):
    """After a step, or after the second of three epochs of one."""
    job(when, tmp_path)
    for rank in range(2):
        whole, again = (torch.load(tmp_path / f"{name}-{rank}.pt") for name in ("two", "again"))
        assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    first, *_ = (tmp_path / "again-0.txt").read_text(encoding="utf-8").splitlines()
    assert first == {"killed": "reward 1", "within": "dynamics 3"}[when]


@pytest.mark.slow
def test_torchrun_trains_a_study_and_says_once_what_is_wrong(tmp_path):
    found = runpy.run_path(str(HERE / "several.py"), run_name="several")
    found["frame"]().to_parquet(tmp_path / "panel.parquet")
    content = found["STUDY"] | {"data": found["STUDY"]["data"] | {"path": str(tmp_path / "panel.parquet")}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    asked = ["--config", tmp_path / "study.yaml", "--run", tmp_path / "run", "--device", "cpu"]
    options = ["estimation.folds=1", "estimation.refit.rounds=0", "reward={}"]
    command = [*torchrun, HERE.parents[1] / "scripts/train.py", *asked, *options]
    first, again = (subprocess.run(command, capture_output=True, text=True, timeout=1200) for _ in range(2))
    assert first.returncode == 0 and first.stdout.count("run finished") == 1, first.stderr
    assert runs.read_json(tmp_path / "run" / runs.LAST)["panel"]["processes"] == 2
    assert again.returncode and again.stderr.count("error: ") == 1, again.stderr
    assert "a finished run is already here" in again.stderr and "(exitcode: 2)" in again.stderr
