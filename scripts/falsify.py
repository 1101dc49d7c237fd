"""Test what the estimate of a finished run assumes, each assumption by itself: RUN/falsification.json, and a table.

python scripts/falsify.py --run runs/membership

Stationarity, common shocks, hidden types, attention, independent shocks (IIA), the discount factor and the anchor's
reward; each with its null, statistic and p-value, or why the panel cannot say. scripts/report.py shows what was found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

import irl
from irl import command, runs
from irl.config import InputError
from irl.data import read_panel
from irl.estimation.falsification import RESULT, falsify
from irl.report import load_record
from irl.report.falsification import falsification_table, sentences
from irl.report.terminal import print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--overwrite", action="store_true", help="replace the tests that are in the folder")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    arguments = parser.parse_args()

    model = irl.load(arguments.run, device=command.usable_device(arguments.device))
    path = arguments.run / RESULT
    if path.exists() and not arguments.overwrite:
        raise InputError(f"{path}: already there; give --overwrite to replace it")
    console = Console(stderr=True)
    with console.status(f"reading {model.config.data.path}"):
        panel = read_panel(model.config, schema=model.schema)
    with runs.locked(arguments.run), console.status("testing"):
        seconds = falsify(arguments.run, model, panel)
    record = load_record(arguments.run)
    table = falsification_table(record)
    assert table is not None, "it was just written"
    print_table(table)
    for sentence in sentences(record):
        print(sentence)
    print(f"tests: {path}, in {seconds:.0f} s; scripts/report.py shows them")


if __name__ == "__main__":
    with command.user_errors():
        main()
