"""Forecast what a study was not fitted on - later periods, an experiment's arm - and compare: RUN/backtest.json.

python scripts/backtest.py --run RUN --config configs/union_membership.yaml --until 1984 [key.path=value ...]
python scripts/backtest.py --run RUN         # a run that was trained with data.until=PERIOD or data.held_out={...}
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from rich.console import Console

import irl
from irl import command, runs
from irl.config import InputError, load_config
from irl.counterfactual.backtest import RESULT, backtest, check, experiment
from irl.data import read_panel, read_table
from irl.data.rows import study_columns
from irl.estimation.pipeline import train
from irl.report import load_record
from irl.report.backtest import parts, record_tables, sentences
from irl.report.terminal import print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run, or of the one to make")
    parser.add_argument("--config", help="train this study (YAML) first")
    parser.add_argument("--until", help="the last period to train on, as data.until=PERIOD")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    parser.add_argument("--overwrite", action="store_true", help="replace the run (with --config) or its backtest")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished training, with --config")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options to change, with --config")
    arguments = parser.parse_intermixed_args()

    device, console = command.usable_device(arguments.device), Console(stderr=True)
    overrides = [*arguments.overrides, *([f"data.until={arguments.until}"] if arguments.until else [])]
    if arguments.config:
        config = load_config(arguments.config, overrides)
        check(config.data)
        with command.progress(console) as tick:
            options = {"overwrite": arguments.overwrite, "resume": arguments.resume, "tick": command.of_training(tick)}
            train(config, read_panel(config), arguments.run, device=device, **options)
    elif overrides:
        raise InputError("--until and key.path=value are for training: give --config too")
    model = irl.load(arguments.run, device=device)
    check(model.config.data)
    path, data = arguments.run / RESULT, model.config.data
    if path.exists() and not arguments.overwrite:
        raise InputError(f"{path}: already there; give --overwrite to replace it")
    with console.status(f"reading {data.path}"):
        frame = read_table(data.path, columns=[*study_columns(model.config), *data.held_out])
    asked = {"backtest": backtest} if data.until is not None else {}
    asked |= {"experiment": experiment} if data.held_out else {}
    found = {}
    with runs.locked(arguments.run), command.progress(console) as tick:
        for name, ask in asked.items():
            found[name] = ask(model, frame, tick=partial(tick, name))
        runs.write_json(path, found)
    record = load_record(arguments.run)
    for part in parts(record):
        for table in record_tables(record, part):
            print_table(table)
        print("\n".join(sentences(record, part)))
    print(f"backtest: {path}; scripts/report.py shows it")


if __name__ == "__main__":
    with command.user_errors():
        main()
