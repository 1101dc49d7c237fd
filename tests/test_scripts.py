"""The scripts as a user runs them: train, ask a scenario, predict; and what they say when something is wrong."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import random
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import irl

ROOT = Path(__file__).resolve().parents[1]
TINY = {"hidden": [8], "max_epochs": 2, "batch_size": 128}
STUDY = {
    "data": {
        "path": "panel.parquet",
        "member": "id",
        "period": "month",
        "action": "plan",
        "actions": ["none", "monthly", "annual"],
        "available": {"monthly": {"status": ["out", "monthly"]}},
        "segment": "region",
        "state": {
            "status": {"kind": "category", "dynamics": "table"},
            "video": {"kind": "ordinal", "levels": 3, "dynamics": "learned"},
            "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
        },
    },
    "anchor": {"action": "none", "reward": 0.0},
    "discount": 0.9,
    "seed": 0,
    "estimation": {
        "checkpoint_seconds": 0.0,
        "policy": TINY,
        "anchor_q": TINY | {"rounds": 2},
        "reward": TINY,
        "dynamics": TINY,
    },
}
SCENARIO = {"name": "Annual dearer", "periods": 4, "changes": [{"feature": {"name": "price", "scale": [0.9, 1.1]}}]}


def panel() -> pd.DataFrame:
    """60 members x 10 periods who choose at random; annual lasts two periods, in which monthly cannot be chosen."""
    rng = np.random.default_rng(0)
    rows = []
    for member in range(60):
        status, video, price = "out", 0, float(rng.choice([0.8, 1.0, 1.2]))
        for month in range(10):
            menu = ["none", "annual"] if status == "annual" else ["none", "monthly", "annual"]
            plan = str(rng.choice(menu))
            rows.append((f"id7Q{member:04d}x", month, plan, status, video, price, ("north", "south")[member % 2]))
            video = int(np.clip(video + (1 if plan != "none" else -1) * rng.integers(0, 2), 0, 2))
            status = "out" if plan == "none" else plan
    return pd.DataFrame(rows, columns=["id", "month", "plan", "status", "video", "price", "region"])


def script(name: str, *arguments: object) -> int:
    """Run a script in this process; its exit code."""
    old = sys.argv
    sys.argv = [f"{name}.py", *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = old
    return 0


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with panel.parquet, study.yaml, scenario.yaml and a finished run in ``run``. Not to be written to."""
    folder = tmp_path_factory.mktemp("study")
    panel().to_parquet(folder / "panel.parquet")
    study = STUDY | {"data": STUDY["data"] | {"path": str(folder / "panel.parquet")}}
    write(folder / "study.yaml", study)
    write(folder / "scenario.yaml", SCENARIO)
    assert script("train", "--config", folder / "study.yaml", "--run", folder / "run", "--device", "cpu") == 0
    return folder


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A copy of ``trained`` to be written to."""
    return Path(shutil.copytree(trained, tmp_path / "study"))


def test_training_leaves_a_whole_run(trained):
    run = trained / "run"
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert config["estimation"]["policy"]["max_epochs"] == 2 and config["temperature"] == 1.0  # resolved
    assert {"model", "tb", "provenance.json", "metrics.json", "config.yaml"} <= {p.name for p in run.iterdir()}
    assert {p.name for p in (run / "model").iterdir()} == {"weights.safetensors", "model.json"}
    assert any(p.name.startswith("events") for p in (run / "tb" / "policy").iterdir())
    assert any(p.name.startswith("events") for p in (run / "tb" / "summary").iterdir())
    about = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    assert about["software"] == "anchor-irl" and about["about"]["seed"] == 0 and about["about"]["data"]
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["panel"]["rows"] == 600 and metrics["panel"]["members"] == 60
    model = irl.load(run)
    frame = panel()
    assert model.policy(frame).sum(axis=1).to_numpy() == pytest.approx(1)


def test_a_dry_run_says_what_is_there_and_writes_nothing(trained, tmp_path, capsys):
    run = tmp_path / "run"
    assert script("train", "--config", trained / "study.yaml", "--run", run, "--dry-run") == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("600", "60", "540", "north", "south", "nothing was written"))
    assert not run.exists()
    assert script("train", "--config", trained / "study.yaml", "--dry-run") == 0  # needs no run


def test_training_is_quiet_but_for_what_the_user_asked(tmp_path):
    """As a command: progress on stderr, the summary on stdout, none of the libraries' warnings."""
    panel().to_csv(tmp_path / "panel.csv", index=False)
    write(tmp_path / "study.yaml", STUDY)
    command = [sys.executable, ROOT / "scripts" / "train.py", "--config", "study.yaml", "--run", "run"]
    options = ["data.path=panel.csv", "seed=3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "run finished: run" in found.stdout
    lines = (found.stdout + found.stderr).splitlines()
    assert any(line.startswith("WARNING: Segment north: only") for line in lines)  # 60 members are few
    noise = "\n".join(line for line in lines if not line.startswith("WARNING: Segment")).lower()
    assert not [word for word in ("warning", "deprecat", "tip:", "gpu available", "traceback") if word in noise], noise
    assert "policy" in found.stderr and "held-out loss" in found.stderr
    assert irl.load(tmp_path / "run").config.seed == 3


def test_a_run_is_not_replaced_without_being_told(copied, capsys):
    before = listing(copied)
    train = ("train", "--config", copied / "study.yaml", "--run", copied / "run")
    assert script(*train) == 2
    assert "a finished run is already here; give --overwrite" in capsys.readouterr().err
    assert script(*train, "--resume") == 2
    assert listing(copied) == before
    assert script(*train, "--overwrite", "seed=5") == 0
    assert irl.load(copied / "run").config.seed == 5


def test_a_run_resumes_after_its_last_finished_step(copied, monkeypatch):
    run = copied / "run"
    whole = (run / "model" / "weights.safetensors").read_bytes()
    steps = {p.stem for p in (run / "steps").glob("*.json")}
    assert {"policy", "anchor_q", "reward", "dynamics"} <= steps
    (run / "metrics.json").unlink()
    for name in ("reward", "dynamics"):
        (run / "steps" / f"{name}.json").unlink()
    from irl.estimation import pipeline

    def again(*arguments, **options):
        raise AssertionError("this step was finished")

    monkeypatch.setattr(pipeline, "fit_policy", again)
    monkeypatch.setattr(pipeline, "fit_anchor_q", again)
    train = ("train", "--config", copied / "study.yaml", "--run", run)
    assert script(*train) == 2  # not without --resume
    assert script(*train, "--resume", "seed=9") == 2  # nor with other options
    assert script(*train, "--resume") == 0
    assert (run / "model" / "weights.safetensors").read_bytes() == whole  # as if it had never stopped
    assert (run / "metrics.json").exists()


def test_a_full_disk_is_one_message_and_the_run_goes_on(trained, tmp_path, capsys, monkeypatch):
    """And a run from the start ends at the same numbers as another of the same seed."""
    run, calls, sync = tmp_path / "run", itertools.count(), os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    train = ("train", "--config", trained / "study.yaml", "--run", run, "--device", "cpu")
    monkeypatch.setattr(os, "fsync", full)
    assert script(*train) == 2
    said = capsys.readouterr().err
    assert "error:" in said and "No space left on device; make room there" in said and "Traceback" not in said
    assert (run / "steps" / "policy.json").exists() and not list(run.rglob("*.tmp"))
    assert script(*train, "--resume") == 0
    for name in ("model/weights.safetensors", "model/model.json"):
        assert (run / name).read_bytes() == (trained / "run" / name).read_bytes()


def test_a_run_does_not_go_on_with_other_data(tmp_path, capsys, monkeypatch):
    """Not even if nothing but weights has changed."""
    panel().assign(w=1.0).to_parquet(tmp_path / "panel.parquet")
    study = STUDY | {"data": STUDY["data"] | {"path": str(tmp_path / "panel.parquet"), "weight": "w"}}
    train = ("train", "--config", write(tmp_path / "study.yaml", study), "--run", tmp_path / "run", "--device", "cpu")
    with monkeypatch.context() as patched:

        def stopped(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        patched.setattr("irl.estimation.pipeline.fit_policy", stopped)
        assert script(*train) == 130
    assert (tmp_path / "run" / "provenance.json").exists()
    panel().assign(w=lambda p: 1.0 + (p["month"] == 3)).to_parquet(tmp_path / "panel.parquet")
    assert script(*train, "--resume") == 2
    assert "what it was started with has changed (data)" in capsys.readouterr().err


def test_a_run_killed_at_any_moment_ends_the_same(trained, tmp_path):
    """The short version of `benchmark.py kill`."""
    kill = runpy.run_path(str(ROOT / "scripts" / "benchmarks" / "kill.py"))

    def train(run: Path) -> list[object]:
        return ["train", "--config", trained / "study.yaml", "--run", run, "--device", "cpu"]

    def ask(out: Path) -> list[object]:
        scenario = ["--scenario", trained / "scenario.yaml", "--out", out]
        return ["counterfactual", "--run", trained / "run", *scenario, "--device", "cpu"]

    aims = ("policy_fold_1", "refit")
    kills = kill["one_run"](trained / "run", tmp_path / "killed", train, aims, random.Random(0))
    assert script(*ask(tmp_path / "alone")) == 0
    kills.append(kill["one_answer"](tmp_path / "alone", tmp_path / "answer", ask, 0.05))
    assert [how for *_, how in kills] == ["bitwise the same"] * 3
    assert all(there != "it had ended" for *_, there, _ in kills)


def test_no_member_is_named_in_a_run(copied):
    run = copied / "run"
    for name in ("counterfactual", "report"):
        asked = ["--scenario", copied / "scenario.yaml"] if name == "counterfactual" else []
        assert script(name, "--run", run, *asked) == 0
    assert {"report.html", "scenarios", "tb", "steps"} <= {path.name for path in run.iterdir()}
    outcomes = run / "scenarios" / "annual_dearer" / "outcomes.parquet"
    written = listing(run) | {"outcomes": pd.read_parquet(outcomes).to_csv().encode()}  # Parquet is compressed
    assert "id7Q0000x" in set(panel()["id"])
    assert not [name for name, content in written.items() if b"id7Q" in content]


def test_figures_of_few_members_are_withheld(tmp_path, capsys):
    """5 members, who are too few; 25, by whom they could be worked out; and 30."""
    frame = panel()
    number = frame["id"].str[4:8].astype(int)
    frame["region"] = np.select([number < 5, number < 30], ["Qfew", "Qnext"], "Qmany")
    frame.to_parquet(tmp_path / "panel.parquet")
    study = STUDY | {
        "data": STUDY["data"] | {"path": str(tmp_path / "panel.parquet")},
        "reward": {"benefits": ["video"]},
    }
    run, device = tmp_path / "run", ("--device", "cpu")
    assert script("train", "--config", write(tmp_path / "study.yaml", study), "--run", run, *device) == 0
    assert script("counterfactual", "--run", run, "--scenario", write(tmp_path / "s.yaml", SCENARIO), *device) == 0
    sentence = "Figures of Qfew, Qnext are withheld: fewer than 20 members"
    assert capsys.readouterr().err.count(sentence) == 2
    assert script("attribution", "--run", run, *device) == script("bootstrap", "--run", run, "--replicas", "2") == 0
    assert script("report", "--run", run) == 0
    outcomes = pd.read_parquet(run / "scenarios" / "annual_dearer" / "outcomes.parquet")
    assert set(outcomes["segment"]) == {"Qmany", "all"}
    named = [p for p in run.rglob("*") if p.suffix in (".json", ".tex", ".html") and p.name != "model.json"]
    assert len(named) > 12
    for path in named:
        text = path.read_text(encoding="utf-8").replace(sentence, "")
        if path.suffix == ".json":
            content = json.loads(text)
            for part in (content, content.get("panel", {})) if isinstance(content, dict) else ():
                part.pop("withheld", None)
            text = json.dumps(content)
            assert "Qmany" in text or path.parent.name == "steps" or path.name == "provenance.json", path
        assert "Qfew" not in text and "Qnext" not in text, path


def test_of_too_few_members_nothing_is_shown(copied, capsys):
    run, device = copied / "other", ("--device", "cpu")
    options = ["data.min_cell=61", "reward.benefits=[video]"]
    assert script("train", "--config", copied / "study.yaml", "--run", run, *device, *options) == 0
    assert "All figures are withheld: fewer than 61 members" in capsys.readouterr().err
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["panel"]["segments"] == {} and not any(metrics["reward_summary"].values())
    asked = ("--scenario", copied / "scenario.yaml")
    before = listing(run)
    for name, *more in (("counterfactual", *asked), ("attribution",), ("bootstrap",), ("sensitivity",)):
        assert script(name, "--run", run, *more, *device) == 2, name
        assert "fewer than 61 members" in capsys.readouterr().err
    assert listing(run) == before | {".lock": (run / ".lock").read_bytes()}
    assert script("report", "--run", run) == 0
    assert "All figures are withheld" in (run / "report.html").read_text(encoding="utf-8")


def test_a_diverging_training_is_said_in_words(copied, capsys):
    options = ["estimation.policy.learning_rate=1.0e+30", "estimation.policy.weight_decay=0"]
    assert script("train", "--config", copied / "study.yaml", "--run", copied / "other", *options) == 2
    said = capsys.readouterr().err
    assert "error: the training diverged: policy: the training loss is not finite from batch" in said
    assert "estimation.policy.learning_rate" in said and "Traceback" not in said


def test_weights_that_are_no_numbers_are_not_kept(copied, capsys, monkeypatch):
    from irl.estimation import pipeline

    fit = pipeline.fit_reward

    def broken(*arguments: object, **options: object) -> object:
        network, report = fit(*arguments, **options)
        next(network.parameters()).data.fill_(float("nan"))
        return network, report

    run = copied / "run"
    (run / "metrics.json").unlink()
    (run / "steps" / "reward.json").unlink()
    monkeypatch.setattr(pipeline, "fit_reward", broken)
    assert script("train", "--config", copied / "study.yaml", "--run", run, "--resume", "--device", "cpu") == 2
    assert "the training diverged: reward: " in (said := capsys.readouterr().err) and "no finite number" in said
    assert (run / "steps" / "policy.json").exists() and not (run / "steps" / "reward.json").exists()


def test_a_scenario_is_answered(copied, capsys):
    ask = ("counterfactual", "--run", copied / "run", "--scenario", copied / "scenario.yaml", "--device", "cpu")
    assert script(*ask) == 0
    folder = copied / "run" / "scenarios" / "annual_dearer"
    names = {p.name for p in folder.iterdir()}
    assert {"outcomes.parquet", "scenario.yaml", "provenance.json", "metrics.json", "tb"} <= names
    table = pd.read_parquet(folder / "outcomes.parquet")
    assert list(table.columns) == [
        "case", "segment", "period", "outcome", "baseline", "scenario", "change", "low", "high",
    ]  # fmt: skip
    assert table["period"].dtype == "Int64"
    assert set(table["case"]) == {"price scale 0.9", "price scale 1.1"}
    assert set(table["segment"]) == {"north", "south", "all"}
    assert {"use_video", "survival", "surplus"} <= set(table["outcome"])
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["members"] == 60 and list(metrics["solved"]) == ["baseline", "price scale 0.9", "price scale 1.1"]
    out = capsys.readouterr()
    assert "answered for 60 members" in out.out
    assert "note: price is put outside its observed range (0.8 to 1.2)" in out.err
    # the same question from Python gives the same table
    with pytest.warns(UserWarning, match="outside its observed range"):
        again = irl.simulate(irl.load(copied / "run"), SCENARIO, panel())
    pd.testing.assert_frame_equal(table, again, check_dtype=False)
    before = listing(folder)
    assert script(*ask) == 2
    assert "a finished scenario is already here; give --overwrite" in capsys.readouterr().err
    assert listing(folder) == before
    assert script(*ask, "--overwrite") == 0


def test_a_shipped_run_answers_without_the_panel(copied, capsys):
    run, scenario = copied / "shipped", write(copied / "s.yaml", SCENARIO | {"members": 40})
    ship = ("ship", "--run", copied / "run", "--out", run, "--scenario", scenario)
    assert script(*ship, "--members", 30) == 0
    assert {p.name for p in run.iterdir()} == {
        "model", "config.yaml", "metrics.json", "provenance.json", "recorded.json", "sample.parquet", ".lock",
    }  # fmt: skip
    sample = pd.read_parquet(run / "sample.parquet")
    assert sample["id"].value_counts().to_dict() == {member: 10 for member in range(30)}  # whole members
    recorded = json.loads((run / "recorded.json").read_text(encoding="utf-8"))
    assert recorded["reward"]["monthly"] == pytest.approx(irl.load(run).reward(sample).mean()["monthly"])
    assert set(recorded["shares"]) == {"price scale 0.9", "price scale 1.1"}
    assert script(*ship) == 2 and "already here" in capsys.readouterr().err
    ask = ("counterfactual", "--run", run, "--scenario", scenario)
    path = Path(irl.load(run).config.data.path)  # of all tests here: to be put back
    path.rename(copied / "gone.parquet")
    try:
        assert script(*ask) == 0
        said = capsys.readouterr().err
        assert f"note: the panel {path} is not here: the members are the 30 of {run / 'sample.parquet'}" in said
        (run / "sample.parquet").unlink()
        assert script(*ask, "--overwrite") == 2
        assert "no such file or folder" in capsys.readouterr().err
    finally:
        (copied / "gone.parquet").rename(path)


def test_an_export_is_not_replaced_without_being_told(copied, capsys):
    export = ("export", "--run", copied / "run", "--format", "safetensors")
    folder = copied / "run" / "export" / "safetensors"
    assert script(*export) == 0
    assert str(folder / "weights.safetensors") in capsys.readouterr().out
    assert json.loads((folder / "schema.json").read_text(encoding="utf-8"))["actions"] == ["none", "monthly", "annual"]
    before = listing(folder)
    assert script(*export) == 2
    assert "an export is already here; give --overwrite" in capsys.readouterr().err
    assert listing(folder) == before
    assert script(*export, "--overwrite") == 0
    assert script(*export, "--out", copied / "run", "--overwrite") == 2
    assert "nothing replaces those" in capsys.readouterr().err


def test_a_scenario_for_other_members_and_into_another_folder(copied):
    states = panel().query("month == 9")[["region", "price", "video", "status"]]
    states.to_csv(copied / "now.csv", index=False)
    ask = ("counterfactual", "--run", copied / "run", "--scenario", copied / "scenario.yaml")
    assert script(*ask, "--data", copied / "now.csv", "--out", copied / "answer") == 0
    metrics = json.loads((copied / "answer" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["members"] == 60
    assert metrics["solved"]["baseline"]["converged"] and not metrics["solved"]["baseline"]["changes_dynamics"]
    assert not (copied / "run" / "scenarios").exists()


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_predictions_of_a_file(copied, ending, capsys):
    frame = panel().sample(frac=1, random_state=1).assign(note="x")
    path, out = copied / f"new.{ending}", copied / "deep" / f"out.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_csv(path, index=False)
    assert script("predict", "--run", copied / "run", "--data", path, "--out", out) == 0
    table = pd.read_parquet(out) if ending == "parquet" else pd.read_csv(out)
    actions = ["none", "monthly", "annual"]
    assert list(table.columns) == ["id", "month", *(f"reward_{a}" for a in actions), *(f"policy_{a}" for a in actions),
                                   "value"]  # fmt: skip
    assert table["id"].tolist() == frame["id"].tolist() and table["month"].tolist() == frame["month"].tolist()
    model = irl.load(copied / "run")
    exact = model.reward(frame)
    for action in actions:
        assert table[f"reward_{action}"].to_numpy() == pytest.approx(exact[action].to_numpy(), nan_ok=True)
    assert table["value"].to_numpy() == pytest.approx(model.value(frame).to_numpy(), nan_ok=True)
    inside = (frame["status"] == "annual").to_numpy()
    assert table.loc[inside, "reward_monthly"].isna().all() and (table.loc[inside, "policy_monthly"] == 0).all()
    assert f"wrote {out}: 600 rows" in capsys.readouterr().out


def test_predictions_need_the_state_columns_only(copied, capsys):
    frame = pd.DataFrame({"price": [1.0, 0.9], "status": ["out", "never seen"], "video": [0, 2]})
    frame.to_csv(copied / "new.csv", index=False)
    predict = ("predict", "--run", copied / "run", "--data", copied / "new.csv", "--out", copied / "out.csv")
    assert script(*predict) == 0
    table = pd.read_csv(copied / "out.csv")
    assert len(table) == 2 and "id" not in table.columns
    assert "1 rows have a status that the study never saw" in capsys.readouterr().err
    assert script(*predict) == 2
    assert "already there; give --overwrite" in capsys.readouterr().err
    assert script(*predict, "--overwrite") == 0


def test_sensitivity_is_added_to_the_run_and_reported(copied, capsys):
    run = copied / "run"
    ask = ("sensitivity", "--run", run, "--rewards", "-1", "--device", "cpu", "--discounts")
    assert script(*ask, "0.9") == 0
    points = json.loads((run / "sensitivity.json").read_text(encoding="utf-8"))["points"]
    assert [(round(p["discount"], 4), p["shift"]) for p in points] == [(0.9, 0), (0.9913, 0), (0.9, -1)]
    assert "60 groups of members are too few" in (said := capsys.readouterr()).out and "3 new points" in said.out
    assert "a year has 12 periods" in said.err
    assert script(*ask, "0.9", "0.8") == 0
    assert "1 new points" in capsys.readouterr().out
    assert script("report", "--run", run) == 0
    assert "discount, a year" in (run / "report.html").read_text(encoding="utf-8")
    assert "## Identification" in (run / "model_card.md").read_text(encoding="utf-8")
    assert (run / "tables" / "rewards_by_discount.tex").exists()
    before = listing(run)
    assert script(*ask, "0.9", "--periods-per-year", "4") == 2
    assert "give --overwrite to start again" in capsys.readouterr().err and listing(run) == before
    assert script(*ask, "0.9", "--periods-per-year", "4", "--overwrite") == 0
    assert "--periods-per-year" not in capsys.readouterr().err


def test_scenarios_are_answered_under_other_assumptions_and_reported(copied, capsys):
    run, other, again = copied / "run", copied / "other", ("--device", "cpu")
    ask = ("assumptions", "--run", run, "--against", other, *again)
    assert script("train", "--config", copied / "study.yaml", "--run", other, *again, "anchor.reward=0.5") == 0
    assert script(*ask) == 2 and "it needs answered scenarios" in capsys.readouterr().err
    better = {**SCENARIO, "changes": [{"reward": {"action": "annual", "add": 1.0}}]}
    assert script("counterfactual", "--run", run, "--scenario", write(copied / "s.yaml", better), *again) == 0
    assert script("assumptions", "--run", run, "--against", run, *again) == 2
    assert "it assumes what the run does" in capsys.readouterr().err and not (run / "assumptions.json").exists()
    sensitivity = ("sensitivity", "--run", run, "--discounts", "0.9", "--rewards", "0", *again)
    assert script(*sensitivity) == 0 and script(*ask) == 0
    said = capsys.readouterr().out
    assert "What the answers rest on" in said and "2 variants" in said
    found = json.loads((run / "assumptions.json").read_text(encoding="utf-8"))
    assert found["variants"]["other"] == {"anchor.reward": [0.0, 0.5]}
    assert [place for place in found["variants"]["discount 0.9 a year"]] == ["discount"]
    assert [a["variant"] for a in found["answers"]] == ["", "discount 0.9 a year", "other"]
    surplus = [[r["change"] for r in a["rows"] if r["outcome"] == "surplus"] for a in found["answers"]]
    assert surplus[0] != surplus[1] and min(map(len, surplus)) > 0
    before = listing(run)
    assert script(*ask) == 0 and "2 variants" in capsys.readouterr().out
    assert listing(run) == before  # all was there
    assert script("train", "--config", copied / "study.yaml", "--run", other, *again, "--overwrite", "seed=3",
                  "anchor.reward=0.25") == 0  # fmt: skip
    assert script(*ask) == 0
    replaced = json.loads((run / "assumptions.json").read_text(encoding="utf-8"))
    assert [a["variant"] for a in replaced["answers"]] == [a["variant"] for a in found["answers"]]
    assert replaced["answers"][:2] == found["answers"][:2] and replaced["answers"][2] != found["answers"][2]
    assert replaced["variants"]["other"] == {"anchor.reward": [0.0, 0.25]}
    assert script("report", "--run", run) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Scenarios under other assumptions" in page and "anchor.reward 0.25 instead of 0.0" in page


def test_what_the_estimate_assumes_is_tested_and_reported(copied, capsys):
    run = copied / "run"
    ask = ("falsify", "--run", run, "--device", "cpu")
    assert script(*ask) == 0
    said = capsys.readouterr().out
    assert "What would show the model to be wrong" in said and str(run / "falsification.json") in said
    found = json.loads((run / "falsification.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in found["checks"]][:2] == ["stationarity", "common shocks"]
    before = listing(run)
    assert script(*ask) == 2 and "give --overwrite to replace it" in capsys.readouterr().err
    assert listing(run) == before
    assert script(*ask, "--overwrite") == 0 and script("report", "--run", run) == 0
    assert "Tests of the assumptions" in (run / "report.html").read_text(encoding="utf-8")


def test_benefits_are_attributed_and_reported(copied, capsys):
    run = copied / "priced"
    train = ("train", "--config", copied / "study.yaml", "--run", run, "--device", "cpu")
    assert script(*train, "reward={structure: additive, benefits: [status, video]}", "estimation.refit.rows=200") == 0
    capsys.readouterr()
    attribute = ("attribution", "--run", run, "--device", "cpu")
    assert script(*attribute) == 0
    said = capsys.readouterr().out
    assert "What each benefit contributes over a member's lifetime" in said and str(run / "attribution.json") in said
    found = json.loads((run / "attribution.json").read_text(encoding="utf-8"))
    assert set(found["start"]) == {"north", "south", "all"} and found["start"]["all"]["choices"] == 60
    assert script(*attribute) == 2
    assert "give --overwrite to replace it" in capsys.readouterr().err
    others = panel().iloc[:300]
    others.to_parquet(copied / "others.parquet")
    assert script(*attribute, "--overwrite", "--data", copied / "others.parquet") == 0
    found = json.loads((run / "attribution.json").read_text(encoding="utf-8"))
    assert found["start"]["all"]["choices"] == 30 and found["data"] == str(copied / "others.parquet")
    assert script("report", "--run", run) == 0
    assert "What counts over a lifetime" in (run / "report.html").read_text(encoding="utf-8")
    assert (run / "tables" / "attribution.tex").exists() and (run / "tables" / "attribution_shares.tex").exists()


def broken_scenario(folder, change=None, **options):
    changes = SCENARIO["changes"] if change is None else [change]
    return write(folder / "broken.yaml", SCENARIO | {"changes": changes} | options)


def without_refit(folder, *options):
    train = ("train", "--config", folder / "study.yaml", "--run", folder / "plain", "--device", "cpu")
    assert script(*train, "estimation.refit.rounds=0", *options) == 0
    return folder / "plain"


def bad_data(folder, **columns):
    panel().assign(**columns).to_parquet(folder / "bad.parquet")
    return folder / "bad.parquet"


# what is tried -> (arguments, of the script; its folder is given), the words that the message must have
TRAIN = {
    "no such study": (lambda f: ["--config", f / "none.yaml", "--run", f / "new"], "none.yaml: no such file"),
    "a typo in the study": (
        lambda f: ["--config", f / "study.yaml", "--run", f / "new", "sede=1"],
        "did you mean 'seed'",
    ),
    "no run": (lambda f: ["--config", f / "study.yaml"], "--run is missing"),
    "no panel": (lambda f: ["--config", f / "study.yaml", "--run", f / "new", f"data.path={f}/x.csv"], "no such file"),
    "a column that is not there": (
        lambda f: ["--config", f / "study.yaml", "--run", f / "new", "data.member=member"],
        "there is no column 'member'",
    ),
    "an action nobody knows": (
        lambda f: ["--config", f / "study.yaml", "--run", f / "new", f"data.path={bad_data(f, plan='weekly')}"],
        "unknown action 'weekly'",
    ),
    "a state that is missing": (
        lambda f: ["--config", f / "study.yaml", "--run", f / "new", f"data.path={bad_data(f, price=np.nan)}"],
        "'price': missing or infinite",
    ),
    "a static that moves": (
        lambda f: ["--config", f / "study.yaml", "--run", f / "new", "data.state.video.dynamics=static"],
        "video: `dynamics: static`, but it changes in",
    ),
    "a clock that does not run, in a dry run": (
        lambda f: ["--config", f / "study.yaml", "--dry-run", "data.state.video.dynamics=clock"],
        "video: `dynamics: clock`, but",
    ),
    "an anchor that nobody chooses": (
        lambda f: [
            "--config",
            f / "study.yaml",
            "--run",
            f / "new",
            "data.actions=[none, monthly, annual, free]",
            "anchor.action=free",
        ],
        "the anchor 'free' is never chosen and followed by another row: name another anchor",
    ),
    "one action alone, in a dry run": (
        lambda f: ["--config", f / "study.yaml", "--dry-run", f"data.path={bad_data(f, plan='none')}"],
        "nothing but the anchor 'none' is ever chosen",
    ),
    "a device that is not there": (
        lambda f: ["--config", f / "study.yaml", "--run", f / "new", "--device", "abacus"],
        "--device abacus: not usable here",
    ),
    "a stranger's folder": (
        lambda f: ["--config", f / "study.yaml", "--run", f, "--overwrite"],
        "nothing replaces those",
    ),
    "both ways at once": (
        lambda f: ["--config", f / "study.yaml", "--run", f / "run", "--overwrite", "--resume"],
        "contradict each other",
    ),
    "a file in the way": (lambda f: ["--config", f / "study.yaml", "--run", f / "study.yaml"], "a file is in the way"),
}
COUNTERFACTUAL = {
    "no run": (lambda f: ["--run", f / "none", "--scenario", f / "scenario.yaml"], "no such run folder"),
    "an unfinished run": (
        lambda f: [(f / "run" / "metrics.json").unlink(), "--run", f / "run", "--scenario", f / "scenario.yaml"][1:],
        "this run is not finished",
    ),
    "no scenario": (lambda f: ["--run", f / "run", "--scenario", f / "none.yaml"], "none.yaml: no such file"),
    "a study as the scenario": (lambda f: ["--run", f / "run", "--scenario", f / "study.yaml"], "data: unknown key"),
    "an action that is not there": (
        lambda f: ["--run", f / "run", "--scenario", broken_scenario(f, {"remove": {"action": "weekly"}})],
        "unknown action 'weekly'",
    ),
    "the anchor": (
        lambda f: ["--run", f / "run", "--scenario", broken_scenario(f, {"remove": {"action": "none"}})],
        "the anchor 'none' cannot be removed",
    ),
    "a segment that is not there": (
        lambda f: [
            "--run", f / "run", "--scenario",
            broken_scenario(f, {"reward": {"action": "annual", "add": 1, "where": {"region": "west"}}}),
        ],
        "no segment 'west'",
    ),
    "the name of the baseline": (
        lambda f: ["--run", f / "run", "--scenario", broken_scenario(f, name="baseline")],
        "choose another name",
    ),
    "no such members": (
        lambda f: ["--run", f / "run", "--scenario", f / "scenario.yaml", "--data", f / "none.csv"],
        "none.csv: no such file",
    ),
    "members without their states": (
        lambda f: ["--run", f / "run", "--scenario", f / "scenario.yaml", "--data", f / "few.csv"],
        "no state column 'video'",
    ),
    "a device that is not there": (
        lambda f: ["--run", f / "run", "--scenario", f / "scenario.yaml", "--device", "cuda:99"],
        "--device cuda:99: not usable here",
    ),
    "a stranger's folder": (
        lambda f: ["--run", f / "run", "--scenario", f / "scenario.yaml", "--out", f, "--overwrite"],
        "nothing replaces those",
    ),
    "a damaged model": (
        lambda f: [
            (f / "run" / "model" / "weights.safetensors").write_bytes(b"x"),
            "--run", f / "run", "--scenario", f / "scenario.yaml",
        ][1:],
        "the model is damaged",
    ),
}  # fmt: skip
PREDICT = {
    "no run": (
        lambda f: ["--run", f / "none", "--data", f / "panel.parquet", "--out", f / "o.csv"],
        "no such run folder",
    ),
    "no data": (lambda f: ["--run", f / "run", "--data", f / "none.csv", "--out", f / "o.csv"], "no such file"),
    "another format": (
        lambda f: ["--run", f / "run", "--data", f / "panel.parquet", "--out", f / "o.xlsx"],
        "ends in .parquet or .csv",
    ),
    "states that are missing": (
        lambda f: ["--run", f / "run", "--data", f / "few.csv", "--out", f / "o.csv"],
        "no state column 'video'",
    ),
    "a value of the wrong kind": (
        lambda f: ["--run", f / "run", "--data", bad_data(f, video=9), "--out", f / "o.csv"],
        "not among its levels",
    ),
    "the data as the output": (
        lambda f: ["--run", f / "run", "--data", f / "panel.parquet", "--out", f / "panel.parquet", "--overwrite"],
        "the file given as --data",
    ),
    "a folder as the output": (
        lambda f: ["--run", f / "run", "--data", f / "panel.parquet", "--out", f / "folder.csv", "--overwrite"],
        "this is a folder",
    ),
    "a file as the folder": (
        lambda f: ["--run", f / "run", "--data", f / "panel.parquet", "--out", f / "study.yaml" / "o.csv"],
        "cannot be written",
    ),
}
SENSITIVITY = {
    "no run": (lambda f: ["--run", f / "none"], "no such run folder"),
    "an unfinished run": (lambda f: [(f / "run" / "metrics.json").unlink(), "--run", f / "run"][1:], "not finished"),
    "no such panel": (lambda f: ["--run", f / "run", "--data", f / "none.csv"], "none.csv: no such file"),
    "no patience that is one": (lambda f: ["--run", f / "run", "--discounts", "1.2"], "above 0 and below 1"),
    "a run without a refit": (lambda f: ["--run", without_refit(f)], "this run has no refit"),
}
ATTRIBUTION = {
    "an unfinished run": (lambda f: [(f / "run" / "metrics.json").unlink(), "--run", f / "run"][1:], "not finished"),
    "no benefits": (lambda f: ["--run", f / "run"], "no benefits are declared"),
    "a run without a refit": (lambda f: ["--run", without_refit(f, "reward.benefits=[video]")], "run has no refit"),
}
FALSIFY = {
    "an unfinished run": (lambda f: [(f / "run" / "metrics.json").unlink(), "--run", f / "run"][1:], "not finished"),
    "a run without a refit": (lambda f: ["--run", without_refit(f)], "run has no refit"),
}
ASSUMPTIONS = {
    "an unfinished run": (lambda f: [(f / "run" / "metrics.json").unlink(), "--run", f / "run"][1:], "not finished"),
    "nothing to compare": (lambda f: ["--run", f / "run"], "scripts/sensitivity.py"),
    "no such other run": (lambda f: ["--run", f / "run", "--against", f / "none"], "no such run folder"),
}
BACKTEST = {
    "an unfinished run": (lambda f: [(f / "run" / "metrics.json").unlink(), "--run", f / "run"][1:], "not finished"),
    "a run fitted on all rows": (lambda f: ["--run", f / "run"], "fitted on all rows"),
    "nothing to leave out": (lambda f: ["--run", f / "new", "--config", f / "study.yaml"], "fitted on all rows"),
    "a period without a study": (lambda f: ["--run", f / "run", "--until", 5], "give --config too"),
    "no such period": (
        lambda f: ["--run", f / "new", "--config", f / "study.yaml", "--until", "May"],
        "'May' is not a period",
    ),
    "an arm of nobody": (
        lambda f: ["--run", f / "new", "--config", f / "study.yaml", "data.held_out={price: [7]}"],
        "holds for no row",
    ),
}
BY_SCRIPT = {
    "train": TRAIN,
    "counterfactual": COUNTERFACTUAL,
    "predict": PREDICT,
    "sensitivity": SENSITIVITY,
    "attribution": ATTRIBUTION,
    "falsify": FALSIFY,
    "assumptions": ASSUMPTIONS,
    "backtest": BACKTEST,
}
BAD = [(name, *case) for name, cases in BY_SCRIPT.items() for case in cases.items()]


def with_option(*options):
    """A study with one option changed, as an override."""
    return lambda f: ["--config", f / "study.yaml", "--run", f / "new", "--device", "cpu", *options]


def with_panel(make, name="bad.parquet"):
    """A study on another panel, which ``make`` writes to a path."""

    def arguments(folder):
        make(folder / name)
        return ["--config", folder / "study.yaml", "--run", folder / "new", f"data.path={folder / name}"]

    return arguments


def with_rows(change):
    return with_panel(lambda path: change(panel()).to_parquet(path))


def with_text(text, name):
    return with_panel(lambda path: path.write_text(text, encoding="utf-8"), name)


def cut(path):
    panel().to_parquet(path)
    path.write_bytes(path.read_bytes()[:-500])


def resumed(damage, *options):
    """An unfinished run, to be gone on with after some damage."""

    def arguments(folder):
        (folder / "run" / "metrics.json").unlink()
        damage(folder)
        return ["--config", folder / "study.yaml", "--run", folder / "run", "--resume", "--device", "cpu", *options]

    return arguments


def asked(damage):
    """A run that was damaged, to be asked for predictions."""

    def arguments(folder):
        damage(folder / "run")
        return ["--run", folder / "run", "--data", folder / "panel.parquet", "--out", folder / "o.csv"]

    return arguments


def edited(*parts, **changes):
    """A JSON file of a run with keys of its top level put to other values."""

    def damage(run):
        path = run.joinpath(*parts)
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(content | changes), encoding="utf-8")

    return damage


def overwritten(content, *parts):
    return lambda run: run.joinpath(*parts).write_bytes(content(run.joinpath(*parts).read_bytes()))


def scenario_with(**options):
    return lambda f: ["--run", f / "run", "--scenario", broken_scenario(f, **options)]


def flipped(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


class Pickled:
    """Would make a file if it were unpickled."""

    def __reduce__(self):
        return (open, ("o.csv", "w"))


WEIGHTS, ABOUT = ("model", "weights.safetensors"), ("model", "model.json")
MORE = {
    "train": {
        "no YAML": (lambda f: ["--config", f / "panel.parquet", "--run", f / "new"], "not valid YAML"),
        "no mapping": (lambda f: ["--config", write(f / "s.yaml", [1]), "--run", f / "new"], "expected a mapping"),
        "a folder as the study": (lambda f: ["--config", f, "--run", f / "new"], "cannot be read (Is a directory)"),
        "an override without a value": (with_option("seed"), "write it as key.path=value"),
        "an override inside a value": (with_option("seed.x=1"), "'seed' is not a section"),
        "no patience that is one": (with_option("discount=1"), "discount: Input should be less than 1"),
        "a negative seed": (with_option("seed=-1"), "seed: Input should be greater than or equal to 0"),
        "an anchor that is no action": (with_option("anchor.action=nothing"), "unknown action 'nothing'"),
        "two anchors": (with_option("anchor.policy=uniform"), "give exactly one of `action`, `by_state`, `policy`"),
        "no state": (with_option("data.state={}"), "data.state"),
        "an action twice": (with_option("data.actions=[none, none]"), "lists an action twice"),
        "an ordinal without levels": (with_option("data.state.video.levels=null"), "an ordinal needs `levels`"),
        "the action as state": (
            with_option("data.state.plan={kind: category, dynamics: learned}"),
            "the action to be explained cannot be state",
        ),
        "a menu by no column": (with_option("data.available.monthly={stat: [out]}"), "did you mean 'status'"),
        "no layers": (with_option("estimation.policy.hidden=[0]"), "estimation.policy.hidden"),
        "more held out than there is": (with_option("estimation.validation=1.5"), "estimation.validation"),
        "a benefit nobody knows": (with_option("reward.benefits=[vide]"), "did you mean 'video'"),
        "a label that never occurs": (with_option("data.terminal={status: [dead]}"), "'dead' never occurs in the data"),
        "a panel cut short": (with_panel(cut), "cannot be read:"),
        "an empty panel": (with_panel(Path.touch), "the file is empty"),
        "text called Parquet": (with_text("a,b\n1,2\n", "x.parquet"), "are what their names say"),
        "semicolons": (with_text("id;month;plan\n1;2;none\n", "x.csv"), "columns have to be separated by commas"),
        "a column twice": (with_text("id,id,month\n1,1,2\n", "x.csv"), "column 'id' appears twice"),
        "a file that is no table": (with_text("x", "x.txt"), "neither Parquet nor CSV by its name"),
        "no rows": (with_rows(lambda p: p.head(0)), "there are no rows"),
        "the same period twice": (with_rows(lambda p: pd.concat([p, p.head(3)])), "several rows for one member"),
        "members without names": (with_rows(lambda p: p.assign(id=None)), "member column 'id': missing values"),
        "periods that are words": (with_rows(lambda p: p.assign(month="May")), "period column 'month'"),
        "choices that are missing": (with_rows(lambda p: p.assign(plan=None)), "action column 'plan': missing values"),
        "a choice off the menu": (
            with_rows(lambda p: p.assign(plan=p["plan"].where(p["status"] != "annual", "monthly"))),
            "the chosen action is not available",
        ),
        "infinite numbers": (with_rows(lambda p: p.assign(price=np.inf)), "'price': missing or infinite"),
        "levels out of range": (with_rows(lambda p: p.assign(video=7)), "not among its levels"),
        "weights below 0": (
            lambda f: [*with_rows(lambda p: p.assign(w=-1.0))(f), "data.weight=w"],
            "weight column 'w'",
        ),
        "one row a member": (with_rows(lambda p: p.query("month == 5")), "no member has two consecutive periods"),
        "one member": (with_rows(lambda p: p.head(10)), "the members do not suffice"),
        "other options than before": (resumed(lambda f: None, "seed=9"), "has changed (config, seed)"),
        "a step cut short": (
            resumed(lambda f: overwritten(lambda c: c[:40], "run", "steps", "policy.safetensors")(f)),
            "step 'policy' cannot be read; start again with --overwrite",
        ),
        "a step without its metrics": (
            resumed(lambda f: overwritten(lambda c: c[:40], "run", "steps", "policy.json")(f)),
            "not valid JSON",
        ),
        "a run without its provenance": (
            resumed(lambda f: (f / "run" / "provenance.json").unlink()),
            "nothing replaces those",
        ),
    },
    "predict": {
        "weights cut short": (asked(overwritten(lambda c: c[:-100], *WEIGHTS)), "the model is damaged"),
        "weights altered": (asked(overwritten(flipped, *WEIGHTS)), "the weights are not as saved"),
        "weights that are a pickle": (asked(overwritten(lambda c: pickle.dumps(Pickled()), *WEIGHTS)), "is damaged"),
        "no weights": (asked(lambda run: run.joinpath(*WEIGHTS).unlink()), "the model folder is incomplete"),
        "no description": (asked(lambda run: run.joinpath(*ABOUT).unlink()), "no such file"),
        "a description cut short": (asked(overwritten(lambda c: c[:99], *ABOUT)), "not valid JSON"),
        "a description that is a list": (asked(overwritten(lambda c: b"[]", *ABOUT)), "model format None"),
        "a description altered": (asked(edited(*ABOUT, config={})), "what model.json says is not as saved"),
        "an older version": (asked(edited(*ABOUT, format=1)), "model format 1; this version reads"),
        "a run of another software": (asked(edited("provenance.json", software="theirs")), "not a run"),
        "provenance cut short": (asked(overwritten(lambda c: c[:20], "provenance.json")), "not a run"),
    },
    "report": {
        "no run": (lambda f: ["--run", f / "none"], "no such run folder"),
        "metrics cut short": (
            lambda f: [overwritten(lambda c: c[:50], "metrics.json")(f / "run"), "--run", f / "run"][1:],
            "not valid JSON",
        ),
        "metrics that are a list": (
            lambda f: [overwritten(lambda c: b"[]", "metrics.json")(f / "run"), "--run", f / "run"][1:],
            "not the metrics of a run",
        ),
        "a configuration altered": (
            lambda f: [overwritten(lambda c: b"data: 1\n", "config.yaml")(f / "run"), "--run", f / "run"][1:],
            "config.yaml:\n  ",
        ),
    },
    "counterfactual": {
        "no periods": (scenario_with(periods=0), "periods: Input should be greater than or equal to 1"),
        "nobody": (scenario_with(members=0), "members: "),
        "no change": (scenario_with(changes=[]), "changes: "),
        "a change that says nothing": (scenario_with(change={}), "give exactly one of `reward`"),
        "a change of nothing": (scenario_with(change={"reward": {"action": "annual"}}), "give at least one of `add`"),
        "no such column": (scenario_with(change={"feature": {"name": "prise", "scale": 2}}), "did you mean 'price'"),
        "a category that is scaled": (scenario_with(change={"feature": {"name": "status", "scale": 2}}), "status"),
        "changes after the end": (scenario_with(timing={"start": 9}), "the changes start after the last of 4 periods"),
        "nobody like that": (scenario_with(population={"where": {"price": [7]}}), "no member starts there"),
        "two sweeps": (
            scenario_with(changes=[*SCENARIO["changes"], {"reward": {"action": "annual", "add": [1, 2]}}]),
            "only one number of one change may be a list",
        ),
        "too few members to show": (
            lambda f: [
                "--run", f / "run", "--scenario", f / "scenario.yaml", "--data",
                [panel().head(50).to_parquet(f / "five.parquet"), f / "five.parquet"][1],
            ],
            "fewer than 20 members (`data.min_cell`)",
        ),
    },
}  # fmt: skip
BAD += [(name, *case) for name, cases in MORE.items() for case in cases.items()]


def test_backtest_and_experiment(trained, tmp_path, capsys):
    """One study, fitted without the last periods and without an arm, forecasts both; a change of what it was not
    fitted on changes nothing in it."""
    study = yaml.safe_load((trained / "study.yaml").read_text(encoding="utf-8"))
    study["data"] |= {"path": str(tmp_path / "panel.parquet"), "held_out": {"price": [1.2]}}
    frame = panel()
    frame.to_parquet(tmp_path / "panel.parquet")
    config = ["--config", write(tmp_path / "study.yaml", study), "--device", "cpu"]
    assert script("backtest", "--run", tmp_path / "one", *config, "--until", 6) == 0
    unseen = (frame["month"] > 6) | (frame["price"] == 1.2)
    frame.loc[unseen, "video"] = (frame.loc[unseen, "video"] + 1) % 3
    frame.to_parquet(tmp_path / "panel.parquet")
    assert script("train", "--run", tmp_path / "two", *config, "data.until=6") == 0
    one, two = (tmp_path / name / "model" / "weights.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    said = capsys.readouterr().out
    assert "Backtest: mean absolute errors" in said and "Experiment held out: plan shares" in said
    found = json.loads((tmp_path / "one" / "backtest.json").read_text(encoding="utf-8"))
    assert found["backtest"]["periods"] == ["7", "8", "9"] and found["experiment"]["held_out"] == {"price": [1.2]}
    arm = panel().loc[lambda f: f["price"] == 1.2, "id"].nunique()
    assert found["experiment"]["segments"]["all"]["members"] == arm
    assert found["backtest"]["segments"]["all"]["members"] == 60 - arm
    assert script("backtest", "--run", tmp_path / "one") == 2 and "give --overwrite" in capsys.readouterr().err
    assert script("report", "--run", tmp_path / "one") == 0
    assert 'id="experiment"' in (tmp_path / "one" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "case"), [(n, c) for n, _, c in BAD], ids=[f"{n}: {w}" for n, w, _ in BAD])
def test_what_is_wrong_is_said_in_one_message_and_nothing_is_written(copied, capsys, name, case):
    make, words = case
    (copied / "few.csv").write_text("status,price,region\nout,1.0,north\n", encoding="utf-8")
    (copied / "folder.csv").mkdir()
    arguments = make(copied)
    before = listing(copied)
    capsys.readouterr()
    assert script(name, *arguments) == 2
    found = capsys.readouterr()
    message = found.err.strip()
    assert message.startswith("error: "), message
    assert message.count("error:") == 1 and "Traceback" not in message
    assert words in message, message
    if "--resume" in arguments and "run/provenance.json" in before:  # that it was gone on with is noted
        before["run/provenance.json"] = (copied / "run" / "provenance.json").read_bytes()
    assert listing(copied) == before
    assert not (copied / "new").exists() and not (copied / "o.csv").exists()


def test_the_recorded_scenario_is_one_that_the_run_answered(copied, capsys):
    ship = ("ship", "--run", copied / "run", "--out", copied / "shipped", "--members", 30)
    assert script(*ship) == 2 and "give it, --scenario" in capsys.readouterr().err and not (copied / "shipped").exists()
    asked = write(copied / "s.yaml", SCENARIO | {"members": 40})
    assert script("counterfactual", "--run", copied / "run", "--scenario", asked, "--device", "cpu") == 0
    assert script(*ship) == 0
    assert json.loads((copied / "shipped" / "recorded.json").read_text(encoding="utf-8"))["scenario"] == "Annual dearer"


def test_an_error_as_a_command(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "counterfactual.py", "--run", "none", "--scenario", "none.yaml"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "error: none.yaml: no such file\n"
    assert not list(tmp_path.iterdir())
