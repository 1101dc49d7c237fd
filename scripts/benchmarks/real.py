"""Real data and peers: ours beside what others make of the same data, in one table for every part.

    bus       Rust's engines, group 4: `linear` beside exact maximum likelihood (our oracle, econirl's NFXP)
    econirl   econirl's own BenchmarkDGP (20 states, 200 x 100): error of the reward over all states and actions
    market    a small membership market with a known reward: the same peers, the reward and a counterfactual
    cdnow     repeat purchases of the second 39 weeks beside BG/NBD of `Lifetimes` (the 1/10 sample)
    randhie   RAND health insurance: the arm at 25 % coinsurance left out and forecast, beside a logit
    wagepan   union membership: what last year's membership does, with one type of men and with two

Every job runs in a process of its own; what it found is kept in --out, so that a call that was stopped goes on. Seconds
(of the wall clock, and of the process's CPU time) are those of the work without imports; memory is the process's peak,
imports included. The peers need the extra [bench], randhie and wagepan [data]; what failed is shown with its reason.

python scripts/benchmark.py real [--only bus econirl ...] [--seeds 0 1 2] [--out DIR] [--again]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from irl import command, runs
from irl.config import InputError

PREPARE = "prepare"
PARTS = ("bus", "econirl", "market", "cdnow", "randhie", "wagepan")
HERE = Path(__file__).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run and show")
    parser.add_argument("--jobs", nargs="+", help="jobs to run, by a word of their names; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the parts that are simulated")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/real"), help="folder for what was found")
    parser.add_argument("--again", action="store_true", help="do again what is there")
    parser.add_argument("--job", nargs=3, metavar=("PART", "JOB", "SEED"), help=argparse.SUPPRESS)  # one, in here
    arguments = parser.parse_args()
    if arguments.job:
        part, job, seed = arguments.job
        print(json.dumps(measured(part, job, int(seed), arguments.out)))
        return
    console = Console(width=None if Console().is_terminal else 150)
    for part in arguments.only:
        module = part_of(part)
        found = []
        for job in module.JOBS:
            for seed in arguments.seeds if module.SEEDED else [0]:
                asked = not arguments.jobs or any(word in job for word in arguments.jobs)
                file = arguments.out / part / f"{'_'.join(re.findall('[A-Za-z0-9]+', job))}-{seed}.json"
                if asked and (arguments.again or not file.exists()):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with Console(stderr=True).status(f"{part}: {job}, seed {seed}"):
                        if hasattr(module, PREPARE) and not (file.parent / f"panel-{seed}.npz").exists():
                            run(part, PREPARE, seed, arguments.out)
                        runs.write_json(file, run(part, job, seed, arguments.out))
                if file.exists():
                    result = runs.read_json(file)
                    found += [{"job": job, **result, **row} for row in result.pop("rows", [{}])]
        if found:
            console.print(table_of(part, module, pd.DataFrame(found)))
    console.print(f"torch {torch.__version__}, {os.cpu_count()} cores; JSON files in {arguments.out}")


def part_of(name: str) -> Any:
    sys.path.insert(0, str(HERE.parent))
    return importlib.import_module(f"real_parts.{name}")


def run(part: str, job: str, seed: int, out: Path) -> dict[str, Any]:
    """What a job found, in a process of its own; why not, if it failed."""
    command = [sys.executable, str(HERE), "--out", str(out), "--job", part, job, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measured(part: str, job: str, seed: int, out: Path) -> dict[str, Any]:
    """Figures of one job, and the peak memory (MB) of this process."""
    module = part_of(part)
    try:
        if hasattr(module, "prepare"):
            module.FOLDER = out / part
            if job == PREPARE:
                module.prepare(seed, module.FOLDER / f"panel-{seed}.npz")
                return {}
        found: dict[str, Any] = module.JOBS[job](seed)
    except ImportError as error:
        raise InputError(f"{job}: needs a package that is not installed ({error.name})") from None
    return {**found, "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def table_of(part: str, module: Any, found: pd.DataFrame) -> Table:
    """Means over the seeds (standard deviations, if several), one row per job."""
    digits_of = {**module.SHOWN, "seconds": 1, "CPU s": 1, "MB": 0}
    table = Table("", *digits_of, "n", title=f"{part}: {module.TITLE}")
    for job, rows in found.groupby("job", sort=False):
        good = rows[rows["failed"].isna()] if "failed" in rows else rows
        if not len(good):
            table.add_row(str(job), str(rows["failed"].iloc[0]))
            continue
        cells = []
        for name, digits in digits_of.items():
            values = good[name].dropna() if name in good else pd.Series(dtype=float)
            spread = f" ({values.std():.{digits}f})" if len(values) > 1 and name in module.SHOWN else ""
            cells.append(f"{values.mean():.{digits}f}{spread}" if len(values) else "")
        table.add_row(str(job), *cells, str(len(good)))
    for job, cells in getattr(module, "PUBLISHED", {}).items():
        table.add_row(job, *(cells.get(name, "") for name in module.SHOWN))
    return table


if __name__ == "__main__":
    with command.user_errors():
        main()
