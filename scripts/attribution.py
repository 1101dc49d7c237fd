"""What each benefit contributes to members' lifetime reward, by segment: RUN/attribution.json, and a table.

python scripts/attribution.py --run runs/membership

Contributions add up where no two benefits interact (`reward: {structure: additive}` or linear); else removal effects.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from rich.console import Console

import irl
from irl import command, runs
from irl.config import InputError
from irl.counterfactual.attribution import RESULT, attribute, check
from irl.data import read_panel
from irl.data.sample import with_sample
from irl.report import load_record
from irl.report.attribution import attribution_table, sentences
from irl.report.terminal import print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--data", help="the members (default: the panel the study was trained on)")
    parser.add_argument("--overwrite", action="store_true", help="replace the attribution that is in the folder")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    arguments = parser.parse_args()

    model = irl.load(arguments.run, device=command.usable_device(arguments.device))
    check(model)
    path = arguments.run / RESULT
    if path.exists() and not arguments.overwrite:
        raise InputError(f"{path}: already there; give --overwrite to replace it")
    config, said = with_sample(model.config, arguments.run)
    data, console = config.data, Console(stderr=True)
    if arguments.data:
        data, said = model.config.data.model_copy(update={"path": arguments.data}), None
    if said:
        console.print(f"note: {said}", markup=False, highlight=False, soft_wrap=True)
    with console.status(f"reading {data.path}"):
        panel = read_panel(config.model_copy(update={"data": data}), schema=model.schema.without_types)
    with runs.locked(arguments.run):
        with command.progress(console) as tick:
            found = attribute(model, panel.to(model.device), tick=partial(tick, "attributing"))
        runs.write_json(path, found | {"data": data.path})
    record = load_record(arguments.run)
    table = attribution_table(record)
    assert table is not None, "it was just written"
    print_table(table)
    for sentence in sentences(record):
        print(sentence)
    print(f"attribution: {path}; scripts/report.py shows it")


if __name__ == "__main__":
    with command.user_errors():
        main()
