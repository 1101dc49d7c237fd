"""A finished run as a small folder to hand on: its model, an id-free sample of its members, numbers to know it by.

The shipped study is made by
    bash scripts/quickstart.sh
    python scripts/ship.py --run runs/quickstart/run --out checkpoints/membership --overwrite
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from irl import command, runs
from irl.config import InputError
from irl.report import load_record
from irl.scenario import Scenario, load_scenario
from irl.shipping import ship


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument("--members", type=int, default=1000, help="members in the sample, at most (default 1000)")
    parser.add_argument(
        "--scenario", help="whose answer is recorded, in small (YAML; default: the first that the run answered)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")
    arguments = parser.parse_args()

    run, out = runs.complete_run(arguments.run), arguments.out
    scenario = load_scenario(arguments.scenario) if arguments.scenario else answered(run)
    about = runs.read_json(run / runs.PROVENANCE).get("about", {})
    with (
        runs.start_run(out, overwrite=arguments.overwrite, about=about) as folder,
        Console(stderr=True).status("writing and recording"),
    ):
        ship(run, folder, members=arguments.members, scenario=scenario)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"shipped: {out}, {size / 1e6:.2f} MB")


def answered(run: Path) -> Scenario:
    """The first scenario that the run answered."""
    for found in load_record(run).scenarios:
        if found.scenario is not None and not found.problem:
            return found.scenario
    raise InputError(f"{run}: no scenario was answered yet, and one has to be recorded: give it, --scenario S.yaml")


if __name__ == "__main__":
    with command.user_errors():
        main()
