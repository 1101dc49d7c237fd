"""Reward, policy and value of every row of a file, by a trained study.

python scripts/predict.py --run runs/membership --data new.parquet --out predictions.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import irl
from irl import runs
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
    arguments = parser.parse_args()

    if arguments.out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {arguments.out}: give a name that ends in .parquet or .csv")
    if arguments.out.exists() and not arguments.overwrite:
        raise InputError(f"--out {arguments.out}: already there; give --overwrite or another name")
    model = irl.load(arguments.run)
    frame = read_table(arguments.data)
    keys = [name for name in (model.config.data.member, model.config.data.period) if name in frame.columns]
    table = pd.concat(
        [
            frame[keys],
            model.reward(frame).add_prefix("reward_"),
            model.policy(frame).add_prefix("policy_"),
            model.value(frame),
        ],
        axis=1,
    )
    content = table.to_parquet(index=False) if arguments.out.suffix == ".parquet" else table.to_csv(index=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    runs.atomic_write(arguments.out, content)
    print(f"wrote {arguments.out}: {len(table):,} rows")


if __name__ == "__main__":
    with runs.user_errors():
        main()
