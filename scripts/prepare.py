"""Make a panel store of raw Parquet or CSV files of any size and order; `data.path` of a study may then name the store.

python scripts/prepare.py --config configs/membership.yaml --out stores/membership [--memory 2GB] [key.path=value ...]
"""

from __future__ import annotations

import argparse

from rich.console import Console

from irl.command import progress, user_errors
from irl.config import load_config
from irl.data.prepare import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the study (YAML), whose `data.path` names the raw files")
    parser.add_argument("--out", required=True, help="folder of the store")
    parser.add_argument("--memory", default="2GB", help="what sorting may use; coding takes some 500 MB beside it")
    parser.add_argument("--overwrite", action="store_true", help="replace the store that is in the folder")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options to change")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)

    console = Console(stderr=True)
    with progress(console) as tick:
        options = {"memory": arguments.memory, "overwrite": arguments.overwrite, "tick": tick}
        store = prepare(config, arguments.out, **options)
    print(f"{store.n_rows:,} rows of {store.n_members:,} members in {len(store.buckets)} buckets: {arguments.out}")


if __name__ == "__main__":
    with user_errors():
        main()
