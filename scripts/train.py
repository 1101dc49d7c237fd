"""Estimate a study: member panel -> policy -> anchor value -> reward -> dynamics -> refit, into a run folder.

python scripts/train.py --config configs/membership.yaml --run runs/membership [--dry-run] [key.path=value ...]
torchrun --nproc-per-node 8 -- scripts/train.py --config ...    (members dealt out to processes, a GPU each)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from rich.console import Console

from irl import command
from irl.config import InputError, load_config
from irl.data import read_panel
from irl.data.describe import summary
from irl.data.sampling import sampling
from irl.estimation.diagnostics import check_anchor
from irl.estimation.dynamics import check_declared
from irl.estimation.pipeline import train
from irl.processes import group, joined
from irl.report import against_truth, load_record, log_run
from irl.report.words import cautions


def main(process: int) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the study (YAML)")
    parser.add_argument("--run", help="run folder to make; needed unless --dry-run")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished run from where it stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in the folder")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", default="32", choices=("32", "bf16-mixed", "16-mixed"), help="of the networks")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--dry-run", action="store_true", help="check options and data, print what is there, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options to change")
    arguments = parser.parse_intermixed_args()

    config, device = load_config(arguments.config, arguments.overrides), command.usable_device(arguments.device)
    if not arguments.run and not arguments.dry_run:
        raise InputError("--run is missing: name the folder that the run should go to (or give --dry-run)")
    console = Console(stderr=True, quiet=process > 0)
    with console.status(f"reading {config.data.path}"):
        panel = read_panel(config, share=group())
    sampled = sampling(panel, config.data)
    print(summary(panel, estimation=config.estimation), sampled, sep="\n")

    def warn(texts: Iterable[str]) -> None:
        for text in texts:
            console.print(f"WARNING: {text}", style="bold red", markup=False, highlight=False, soft_wrap=True)

    if arguments.dry_run:
        check_declared(panel)
        check_anchor(panel)
        warn(sampled.warnings)
        print("dry run: the study fits its panel; nothing was written")
        return
    options = {name: getattr(arguments, name) for name in ("overwrite", "resume", "precision", "compile")}
    with command.progress(console) as tick:
        train(config, panel, arguments.run, device=device, tick=command.of_training(tick), **options)
    if process == 0:
        record = load_record(arguments.run)
        with console.status("writing figures for TensorBoard"):
            log_run(record, against_truth(record))
        warn(cautions(record))
    print(f"run finished: {arguments.run}")


if __name__ == "__main__":
    with command.user_errors(), joined() as process:
        main(process)
