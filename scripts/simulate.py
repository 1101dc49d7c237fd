"""Simulate the membership market of a study, with its true rewards: DATA.parquet and DATA_truth.parquet.

python scripts/simulate.py --config configs/membership.yaml --out data/ [key.path=value ...]
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import track
from rich.table import Table

from irl import membership
from irl.command import user_errors
from irl.config import InputError, load_config
from irl.membership import types
from irl.runs import atomic_write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a study with a `market` section (YAML)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the two files")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options to change")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    market = membership.market_of(config)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {arguments.out}: cannot be used as a folder ({error.strerror})") from None

    console = Console(stderr=True)
    cells = partial(track, description="solving the market", total=len(market.cells()), console=console)
    own = config.market
    solutions = types.solve_types(market, own.types, chosen_use=own.chosen_use, track=cells)
    panel, kind = types.simulate_types(solutions, members=own.members, periods=own.periods, seed=config.seed)
    truth = types.truth(solutions, panel, kind)
    path = arguments.out / Path(config.data.path).with_suffix(".parquet").name
    path.with_stem(f"{path.stem}_truth").unlink(missing_ok=True)  # that of another panel must not stay beside this one
    for frame, file in ((panel, path), (truth, path.with_stem(f"{path.stem}_truth"))):
        atomic_write(file, frame.to_parquet(index=False))
        console.print(f"wrote {file}: {len(frame):,} rows")
    _print_shares(panel)


def _print_shares(panel: pd.DataFrame) -> None:
    table = Table("segment", "members", *membership.ACTIONS, title="plan shares")
    for segment, rows in panel.groupby("segment"):
        shares = rows["plan"].value_counts(normalize=True)
        members = f"{rows['member_id'].nunique():,}"
        table.add_row(str(segment), members, *(f"{shares.get(a, 0.0):.1%}" for a in membership.ACTIONS))
    Console().print(table)


if __name__ == "__main__":
    with user_errors():
        main()
