"""A trained study as files that need nothing of this package: reward, policy, value, and draws of the next state.

pt2: choices.pt2 and transition.pt2 (torch.export.load); onnx: choices.onnx and transition.onnx (onnxruntime; the extra
`export` writes them); safetensors: the weights. schema.json beside them says what columns, codes and outputs are.

python scripts/export.py --run runs/membership --format pt2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

import irl
from irl import command, runs
from irl.export import FORMATS, check_exportable, export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", type=Path, help="folder for the files (default RUN/export/FORMAT)")
    parser.add_argument("--overwrite", action="store_true", help="replace the export that is in the folder")
    arguments = parser.parse_args()

    model = irl.load(arguments.run)
    check_exportable(model, arguments.format)
    out = arguments.out or arguments.run / "export" / arguments.format
    about = {"run": str(arguments.run), "format": arguments.format}
    with (
        runs.start_run(out, overwrite=arguments.overwrite, kind="export", about=about) as folder,
        Console(stderr=True).status(f"writing {arguments.format}"),
    ):
        files = export(model, arguments.format, folder)
    print(f"exported: {', '.join(str(out / name) for name in files)}")


if __name__ == "__main__":
    with command.user_errors():
        main()
