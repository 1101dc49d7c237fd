"""Reward, policy and value of every row of a file, by a trained study.

Only the state columns are needed. The output has the rows of --data in their order: member and period where they are
there, then reward_<action> and value (in reward units; empty where there is nothing to choose or the action is not
available) and policy_<action> (choice probabilities); with hidden types also type_<k>, the probability of each, which
reward, policy and value are averaged by: the posterior where --data has member, period and action. With `attention`,
policy_ is what happens; attention is the probability of a decision, and decided_<action> what is then chosen.

python scripts/predict.py --run runs/membership --data new.parquet --out predictions.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from rich.console import Console

import irl
from irl import command, runs
from irl.config import InputError
from irl.data import read_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument(
        "--data", required=True, help="rows with the state columns: Parquet or CSV (file, folder, glob)"
    )
    parser.add_argument("--out", required=True, type=Path, help="file to write: .parquet or .csv, rows as in --data")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    arguments = parser.parse_args()

    check_out(arguments.out, Path(arguments.data), overwrite=arguments.overwrite)
    model = irl.load(arguments.run, device=command.usable_device(arguments.device))
    console = Console(stderr=True)
    with console.status(f"reading {arguments.data}"):
        frame = read_table(arguments.data)
    with console.status(f"predicting {len(frame):,} rows"):
        keys = [name for name in (model.config.data.member, model.config.data.period) if name in frame.columns]
        reward, policy = model.reward(frame).add_prefix("reward_"), model.policy(frame).add_prefix("policy_")
        others = [model.type_probabilities(frame).add_prefix("type_")] if model.shares is not None else []
        if model.attention is not None:
            others += [model.attention_probability(frame), model.policy(frame, decided=True).add_prefix("decided_")]
        table = pd.concat([frame[keys], reward, policy, model.value(frame), *others], axis=1)
        content = table.to_parquet(index=False) if arguments.out.suffix == ".parquet" else table.to_csv(index=False)
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        runs.atomic_write(arguments.out, content)
    except OSError as error:
        raise InputError(f"--out {arguments.out}: cannot be written ({error.strerror})") from None
    for column, rows in unseen(model, frame).items():
        said = f"note: {rows:,} rows have a {column} that the study never saw; they are answered as if it said nothing"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    print(f"wrote {arguments.out}: {len(table):,} rows")


def check_out(out: Path, data: Path, *, overwrite: bool) -> None:
    if out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {out}: give a name that ends in .parquet or .csv")
    if out.is_dir() or (out.exists() and out.samefile(data) if data.exists() else False):
        raise InputError(f"--out {out}: this is {'a folder' if out.is_dir() else 'the file given as --data'}")
    if out.exists() and not overwrite:
        raise InputError(f"--out {out}: already there; give --overwrite or another name")


def unseen(model: irl.fitted.FittedModel, frame: pd.DataFrame) -> dict[str, int]:
    """Category column -> rows with a label that training did not see."""
    state = model.schema.encode(model.with_types(frame, seed=0))
    columns = [(f, c) for f, c in enumerate(model.schema.columns) if c.kind == "category"]
    counts = {c.name: int((state[:, f] == c.levels).sum()) for f, c in columns}
    return {name: rows for name, rows in counts.items() if rows}


if __name__ == "__main__":
    with command.user_errors():
        main()
