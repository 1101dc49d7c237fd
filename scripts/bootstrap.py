"""Check a run's standard errors by resampling its members, into RUN/bootstrap.json: estimate, analytic and bootstrap
standard error, and percentile interval of every mean reward, benefit's contribution and coefficient.

A call that was stopped goes on after its last finished block of replicas.

python scripts/bootstrap.py --run RUN [--replicas 50] [--seed 0] [--overwrite]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rich.console import Console

import irl
from irl import command
from irl.data import read_panel
from irl.estimation.bootstrap import RESULT, bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--replicas", type=int, default=50, help="resampled panels (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument("--overwrite", action="store_true", help="replace the bootstrap that is in the folder")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    arguments = parser.parse_args()

    model = irl.load(arguments.run, device=command.usable_device(arguments.device))
    console = Console(stderr=True)
    with console.status(f"reading {model.config.data.path}"):
        panel = read_panel(model.config, schema=model.schema).to(model.device)
    with command.progress(console) as show:

        def tick(done: int, rounds: int) -> None:
            show("replicas", done, arguments.replicas, f"round {rounds}" if rounds else "")

        options = {"replicas": arguments.replicas, "seed": arguments.seed, "overwrite": arguments.overwrite}
        found = bootstrap(arguments.run, model, panel, **options, tick=tick)
    ratios = [q["ratio"] for q in found["quantities"] if q["ratio"] is not None]
    if ratios:
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"bootstrap / analytic standard error: median {middle:.2f} ({low:.2f} to {high:.2f}) of {len(ratios)}")
    if found["unconverged"]:
        print(f"warning: {found['unconverged']} replicas did not converge")
    print(f"{arguments.replicas} replicas of {found['clusters']:,} clusters: {arguments.run / RESULT}")


if __name__ == "__main__":
    with command.user_errors():
        main()
