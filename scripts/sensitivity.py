"""How the answers of a finished run move with the annual discount factor and the anchor's reward: RUN/sensitivity.json.

python scripts/sensitivity.py --run runs/membership [--discounts .8 .9 .97] [--rewards -1 1]

A stopped call goes on where it stopped; points asked for later are added. scripts/report.py shows what was found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

import irl
from irl import command, runs
from irl.data import read_panel, read_periods_per_year
from irl.estimation.sensitivity import DISCOUNTS, SHIFTS, ask
from irl.report import load_record
from irl.report.sensitivity import sentences

MONTHS = 12.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--data", help="the panel (default: the one the study was trained on)")
    parser.add_argument("--discounts", nargs="*", type=float, default=DISCOUNTS, help="annual (default: %(default)s)")
    parser.add_argument(
        "--rewards", nargs="*", type=float, default=SHIFTS, help="added to the anchor's reward (default: %(default)s)"
    )
    parser.add_argument("--periods-per-year", type=float, help="default: as the dates say; 12 for integers")
    parser.add_argument("--overwrite", action="store_true", help="start again instead of adding to what is there")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    arguments = parser.parse_args()

    model = irl.load(arguments.run, device=command.usable_device(arguments.device))
    data = model.config.data.model_copy(update={"path": arguments.data or model.config.data.path})
    config = model.config.model_copy(update={"data": data})
    console = Console(stderr=True)
    with console.status(f"reading {data.path}"):
        panel = read_panel(config, schema=model.schema)
        given = arguments.periods_per_year
        year = (read_periods_per_year(config) or MONTHS) if given is None else given
    with runs.locked(arguments.run):
        path = arguments.run / "sensitivity.json"
        grid = {"periods_per_year": year, "discounts": arguments.discounts, "shifts": arguments.rewards}
        question = ask(model, panel, path, **grid, overwrite=arguments.overwrite)
        if given is None:
            console.print(f"note: a year has {year:g} periods; if not, give --periods-per-year", soft_wrap=True)
        with command.progress(console) as tick:
            question.answer(tick=lambda label, done, of: tick("points", done, of, label))
    for sentence in sentences(load_record(arguments.run)):
        print(sentence)
    print(f"{len(question.missing)} new points: {path}; scripts/report.py shows them")


if __name__ == "__main__":
    with command.user_errors():
        main()
