"""Kill test: SIGKILL at random moments of every step, then resume; the end has to be bitwise that of a run left alone.

python scripts/benchmark.py kill [--kills 20] [--seed 0] [--members 150] [--out FOLDER]

A small study of the simulated market is trained once without interruption. Then runs of it are killed, one moment after
the other: each kill aims at a step (in turn, from the first to the writing of the model) and falls at a random part of
the time that the step took. The killed run is resumed, killed again in its next step, and in the end compared: every
tensor of the model and of the steps, and all metrics but seconds. Then two kills fall into the answer of a scenario.
Training states and simulated sums are stored after every epoch and batch (checkpoint_seconds: 0).

Processes are forked from this one, which has imported everything and computed nothing: a kill costs no import.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from safetensors.numpy import load_file

import irl.counterfactual.answer_files
import irl.estimation.pipeline
import irl.membership.types  # noqa: F401 - these are imported once, before the forks
from irl.report.tables import Table
from irl.report.terminal import print_table

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("policy", "policy_fold_1", "policy_fold_2", "anchor_q", "reward", "dynamics", "refit", "model")
"""In their order; ``model``: from the last step to the end, when the model and the metrics are written."""
TINY = "{hidden: [16], max_epochs: 4, batch_size: 256}"
STATE = {
    "segment": {"kind": "category", "dynamics": "static"},
    "status": {"kind": "category", "dynamics": "table"},
    "price_annual": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
    "video": {"kind": "ordinal", "levels": 3, "dynamics": "learned"},
}
OPTIONS = [
    "market.periods=12",
    "money=null",
    "reward.benefits=[video]",
    f"data.state={json.dumps(STATE)}",
    f"estimation.policy={TINY}",
    "estimation.anchor_q={hidden: [16], max_epochs: 3, batch_size: 256, rounds: 2}",
    f"estimation.reward={TINY}",
    f"estimation.dynamics={TINY}",
    "estimation.refit.rows=300",
    "estimation.checkpoint_seconds=0",
    "data.min_cell=1",
]
SCENARIO = {
    "name": "dearer",
    "periods": 6,
    "members": 40_000,
    "changes": [{"feature": {"name": "price_annual", "scale": 1.1}}],
}
ANSWERS = 2
"""Kills of a scenario after those of a run."""
PATIENCE = 1800
"""Seconds after which a process is given up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--members", type=int, default=150)
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.out or Path(temporary)).resolve()
        started = time.perf_counter()
        kills = killed(folder, kills=arguments.kills, seed=arguments.seed, members=arguments.members)
    rows = tuple((str(i), *map(str, kill)) for i, kill in enumerate(kills, 1))
    header = ("kill", "of", "aimed at", "s into it", "what was there", "after resuming")
    bad = sum(kill[-1] != SAME for kill in kills)
    seconds = time.perf_counter() - started
    note = f"{bad} of {len(kills)} ended otherwise than a run left alone. {seconds:.0f} s in all."
    table = Table(title="SIGKILL, then --resume", header=header, rows=rows, labels=3, note=note)
    print_table(table, console=Console(width=140))
    print(note)
    raise SystemExit(1 if bad else 0)


SAME, ENDED = "bitwise the same", "it had ended"
Kill = tuple[str, str, str, str, str]
"""Of a run or a scenario, the step aimed at, seconds into it, what it had stored, and how it ended."""
Arguments = Sequence[object]
"""A script's name, and what it is called with."""


def killed(folder: Path, *, kills: int, seed: int, members: int) -> list[Kill]:
    """The kills, of runs in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    study, scenario = str(ROOT / "configs" / "membership.yaml"), folder / "scenario.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO), encoding="utf-8")
    options = [f"market.members={members}", f"data.path={folder}/membership.parquet", *OPTIONS]
    _finish("simulate", "--config", study, "--out", folder, *options)

    def train(run: Path) -> Arguments:
        return ["train", "--config", study, "--run", run, "--device", "cpu", *options]

    def ask(out: Path) -> Arguments:
        return ["counterfactual", "--run", alone, "--scenario", scenario, "--out", out, "--device", "cpu"]

    alone, answer = folder / "alone", folder / "alone_answer"
    _finish(*train(alone))
    started = time.perf_counter()
    _finish(*ask(answer))
    length = time.perf_counter() - started
    moments, found = random.Random(seed), []
    while len(found) < kills:
        left = kills - len(found)
        aims = STEPS if left > len(STEPS) else sorted(moments.sample(STEPS, max(left - 1, 1)), key=STEPS.index)
        now = one_run(alone, folder / "killed", train, aims, moments)
        answers = min(ANSWERS, kills - len(found))
        now += [one_answer(answer, folder / "killed_answer", ask, moments.random() * length) for _ in range(answers)]
        found += [kill for kill in now if ENDED not in kill]
    return found


def one_run(
    alone: Path, run: Path, train: Callable[[Path], Arguments], aims: Sequence[str], moments: random.Random
) -> list[Kill]:
    """Kills of ``run`` in each of the steps ``aims``; it is then finished, and compared with the finished ``alone``."""
    kills: list[tuple[str, str, str, str]] = []
    shutil.rmtree(run, ignore_errors=True)
    seconds, about = _step_seconds(alone), run / "provenance.json"
    for aim in aims:
        before = run / "steps" / f"{STEPS[STEPS.index(aim) - 1]}.json" if aim != STEPS[0] else about
        since, into = _written(about), moments.random() * seconds[aim]

        def begun(before: Path = before, since: int = since) -> bool:
            return _written(about) != since and before.exists()

        there = _kill([*train(run), "--resume"], begun, into, run)
        kills.append(("run", aim, f"{into:.2f}", there))
    if not (run / "metrics.json").exists():
        _finish(*train(run), "--resume")
    how = _difference(alone, run)
    return [(*kill, how) for kill in kills]


def one_answer(alone: Path, out: Path, ask: Callable[[Path], Arguments], into: float) -> Kill:
    """A kill of the answer ``out``, so many seconds into it; it is then finished, and compared with ``alone``."""
    shutil.rmtree(out, ignore_errors=True)
    there = _kill([*ask(out), "--resume"], (out / "provenance.json").exists, into, out)
    if not (out / "metrics.json").exists():
        _finish(*ask(out), "--resume")
    return ("scenario", "solve, simulate, write", f"{into:.2f}", there, _difference(alone, out))


def _written(path: Path) -> int:
    """When a file was last written; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _step_seconds(run: Path) -> dict[str, float]:
    """How long each step took; the end, about as long as the shortest."""
    stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (run / "steps").glob("*.json")}
    found = {step: float(content["step_seconds"]) for step, content in stored.items()}
    return found | {"model": min(found.values())}


def _fork(arguments: Arguments) -> int:
    """A process that runs a script, in silence; its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        signal.alarm(PATIENCE)  # nothing is waited for longer
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        name, *rest = map(str, arguments)
        sys.argv = [f"{name}.py", *rest]
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def _finish(*arguments: object) -> None:
    _, status = os.waitpid(_fork(arguments), 0)
    if status:
        raise SystemExit(f"error: status {status} of {' '.join(map(str, arguments))}; run it to see why")


def _kill(arguments: Arguments, begun: Callable[[], bool], into: float, folder: Path) -> str:
    """Start a script, wait until ``begun``, and kill it so many seconds later; what was in its folder then."""
    process = _fork(arguments)
    while not begun():
        time.sleep(0.002)
        if os.waitpid(process, os.WNOHANG)[0]:
            return ENDED
    time.sleep(into)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status):
        return ENDED
    steps = sorted((folder / "steps").glob("*.json"))
    half = [re.sub(r"[0-9a-f]{32}", "…", path.name) for path in _half_written(folder)]
    return ", ".join([f"steps: {len(steps)}"] * bool(steps) + half) or "nothing yet"


def _half_written(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.suffix in (".ckpt", ".tmp") or p.name == "simulation.safetensors"]


def _difference(alone: Path, killed: Path) -> str:
    """How two finished runs or answers differ: every tensor and table, and the metrics but for seconds."""
    for path in sorted(alone.rglob("*")):
        other, name = killed / path.relative_to(alone), str(path.relative_to(alone))
        if path.suffix == ".safetensors":
            ours, theirs = load_file(path), load_file(other)
            if {k: v.tobytes() for k, v in ours.items()} != {k: v.tobytes() for k, v in theirs.items()}:
                return f"{name} differs"
        elif path.name in ("outcomes.parquet", "config.yaml", "model.json", "scenario.yaml"):
            if path.read_bytes() != other.read_bytes():
                return f"{name} differs"
        elif path.suffix == ".json" and path.name != "provenance.json":
            ours, theirs = (_timeless(json.loads(p.read_text(encoding="utf-8"))) for p in (path, other))
            if ours != theirs:
                return f"{name} differs"
    # what is drawn for TensorBoard comes after the run is complete, and is replaced when it is drawn again
    left = [p.name for p in _half_written(killed) if "tb" not in p.parts and not p.name.startswith(".tb.")]
    return f"{left[0]} is left over" if left else SAME


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _timeless(v) for k, v in content.items() if not k.endswith("seconds")}
    return [_timeless(v) for v in content] if isinstance(content, list) else content


if __name__ == "__main__":
    main()
