"""Write the panel of a real study, from a public package, for its configuration of the same name.

python scripts/real_data.py union_membership --out data/
python scripts/real_data.py cdnow --out data/ [--everyone]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from irl.command import user_errors
from irl.config import InputError
from irl.data.cdnow import cdnow, transactions
from irl.data.health_insurance import health_insurance
from irl.data.rust_bus import rust_bus
from irl.data.union import union_membership
from irl.runs import atomic_write

PANELS: dict[str, tuple[str, Callable[[], pd.DataFrame]]] = {
    "union_membership": ("men", union_membership),
    "rust_bus": ("buses", rust_bus),
    "cdnow": ("customers", lambda: cdnow(transactions(sample=True))),
    "health_insurance": ("persons", health_insurance),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PANELS)
    parser.add_argument("--out", required=True, type=Path, help="folder for NAME.parquet")
    parser.add_argument("--everyone", action="store_true", help="cdnow: all customers, not the 1/10 sample")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, not a folder")
    if arguments.everyone and arguments.name != "cdnow":
        raise InputError("--everyone is for cdnow: the other panels have no sample")
    who, panel_of = PANELS[arguments.name]
    panel = cdnow(transactions(sample=False)) if arguments.everyone else panel_of()
    file = out / f"{arguments.name}.parquet"
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(file, panel.to_parquet(index=False))
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None
    period = panel.iloc[:, 1]
    print(f"wrote {file}: {len(panel):,} rows of {panel.iloc[:, 0].nunique()} {who}, {period.min()}-{period.max()}")


if __name__ == "__main__":
    with user_errors():
        main()
