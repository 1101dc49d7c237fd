"""Benchmarks: programs that measure one thing and print a table. `benchmark.py NAME --help` has the options.

python scripts/benchmark.py NAME [options]      (NAME --help: its options)
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from irl.command import user_errors

FOLDER = Path(__file__).resolve().parent / "benchmarks"


def main() -> None:
    about = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
    name, *options = sys.argv[1:] or ["--help"]
    if name in about:
        sys.argv = [f"{sys.argv[0]} {name}", *options]
        sys.path.insert(0, str(FOLDER))  # where their parts are
        runpy.run_path(str(about[name]), run_name="__main__")
        return
    listed = "\n".join(f"  {stem:<10} {_first_line(path)}" for stem, path in about.items())
    if name in ("-h", "--help"):
        print(f"{__doc__}\nNAME is one of\n{listed}")
        return
    raise SystemExit(f"error: no benchmark {name!r}; there are\n{listed}")


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    with user_errors():
        main()
