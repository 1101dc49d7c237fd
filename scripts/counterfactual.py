"""Answer a scenario with a trained study: solve, roll out baseline and scenario, write the outcomes table.

python scripts/counterfactual.py --run runs/membership --scenario configs/scenarios/annual_dearer.yaml
torchrun --nproc-per-node 2 -- scripts/counterfactual.py --run ...    (members dealt out to processes, the same answer)
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

import irl
from irl import command, runs
from irl.counterfactual import ask
from irl.counterfactual.answer_files import asked, write_answer
from irl.data import read_members, read_table
from irl.data.disclosure import said
from irl.data.sample import with_sample
from irl.processes import joined
from irl.report import load_record, log_scenario, print_answer
from irl.scenario import load_scenario


def main(process: int) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--scenario", required=True, help="the scenario (YAML)")
    parser.add_argument("--out", type=Path, help="folder for the answer (default RUN/scenarios/NAME)")
    parser.add_argument("--data", help="members to start from (default: the panel the study was trained on)")
    parser.add_argument("--resume", action="store_true", help="continue an answer that was stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace the answer that is in the folder")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    parser.add_argument("--compile", choices=("kernels", "graphs"), help="forward passes: torch.compile, CUDA graphs")
    arguments = parser.parse_args()

    scenario = load_scenario(arguments.scenario)
    model = irl.load(arguments.run, device=command.usable_device(arguments.device))
    console = Console(stderr=True)
    with console.status("reading the members"):
        config, note = (model.config, None) if arguments.data else with_sample(model.config, arguments.run)
        frame = read_table(arguments.data) if arguments.data else read_members(config, model.schema)
        question = ask(model, scenario, frame)  # all that can be refused is, before anything is written
        about = asked(question, arguments.run)
    if process:  # it only takes its part of the members: the first one writes
        question.answer(compile=arguments.compile)
        return
    if note:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    again = {"overwrite": arguments.overwrite, "resume": arguments.resume}
    out = arguments.out or arguments.run / "scenarios" / scenario.folder_name
    started = time.perf_counter()
    with (
        runs.start_run(out, **again, kind="scenario", about=about) as folder,
        command.progress(console) as tick,
    ):
        found = question.answer(tick=tick, compile=arguments.compile, folder=folder)
        write_answer(folder, question, found, seconds=time.perf_counter() - started)
        log_scenario(load_record(arguments.run), folder)
    for text in [*question.withheld.left(found.warnings()), *said(question.withheld.plain())]:
        console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)
    print_answer(out)
    print(f"scenario {scenario.name!r} answered for {found.members:,} members: {out}")


if __name__ == "__main__":
    with command.user_errors(), joined() as process:
        main(process)
