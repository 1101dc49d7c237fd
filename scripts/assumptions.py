"""A run's scenarios answered again by models that assume something else: RUN/assumptions.json, and a table.

python scripts/assumptions.py --run runs/membership [--against runs/two_types runs/other_anchor]

Variants are the models at other discounts that scripts/sensitivity.py left in the run, and other finished runs of the
same members and actions. A stopped call goes on where it stopped. scripts/report.py shows what was found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

import irl
from irl import command, runs
from irl.config import InputError
from irl.counterfactual.relaxed import RESULT, relax, variant
from irl.data import read_fitted
from irl.fitted import load_model
from irl.report import load_record
from irl.report.assumptions import rests_table
from irl.report.terminal import print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run with answered scenarios")
    parser.add_argument("--against", nargs="*", type=Path, default=[], help="other finished runs, of other options")
    parser.add_argument("--overwrite", action="store_true", help="answer all again")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    arguments = parser.parse_args()

    device = command.usable_device(arguments.device)
    model, record = irl.load(arguments.run, device=device), load_record(arguments.run)
    folders = sorted((arguments.run / "variants").glob("*/"))
    variants = [variant(model, folder.name, load_model(folder, device=device)) for folder in folders]
    variants += [variant(model, run.name, irl.load(run, device=device)) for run in arguments.against]
    scenarios = {s.folder: s.scenario for s in record.scenarios if s.scenario is not None and not s.problem}
    if not variants or not scenarios:
        raise InputError(
            f"{arguments.run}: nothing to compare: it needs answered scenarios (scripts/counterfactual.py), and models "
            "at other discounts (scripts/sensitivity.py) or other runs (--against)"
        )
    console = Console(stderr=True)
    with console.status("reading the members"):
        frame = read_fitted(model.config)
    path = arguments.run / RESULT
    with runs.locked(arguments.run), command.progress(console) as tick:
        ticks = {"tick": lambda label, done, of: tick("answers", done, of, label)}
        seconds = relax(path, model, variants, scenarios, frame, overwrite=arguments.overwrite, **ticks)
    for table in rests_table(load_record(arguments.run)):
        print_table(table)
    print(f"{len(variants)} variants: {path}, in {seconds:.0f} s; scripts/report.py shows them")


if __name__ == "__main__":
    with command.user_errors():
        main()
