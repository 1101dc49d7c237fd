"""Whether exported files say what the model says in a fresh virtual environment with torch and onnxruntime, not irl.

Exports a run to pt2 and ONNX (the extra `export`), with the model's own answers at 2,000 rows of its panel (or sample)
beside them, makes the environment (`--venv` keeps it, and uses it again), and compares there.

python scripts/check_export.py --run checkpoints/membership
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROWS, TOLERANCE, PACKAGES = 2000, 1e-5, ("torch", "numpy", "onnxruntime", "setuptools")


def prepare(run: Path, folder: Path) -> None:
    """The exported files, and in ``expected.npz`` inputs and what the model says of them."""
    import irl
    from irl.data.sample import members_of
    from irl.export import export, torch

    model, random = irl.load(run), np.random.default_rng(0)
    frame = model.with_types(members_of(model.config, run)[0].sample(ROWS, replace=True, random_state=0), seed=0)
    state, actions, drawn = model.schema.encode(frame), len(model.schema.actions), max(model.dynamics.n_random, 1)
    action, uniform = random.integers(actions, size=ROWS), random.uniform(0.01, 0.99, (ROWS, drawn)).astype(np.float32)
    answers = {name: getattr(model, name)(frame).to_numpy() for name in ("reward", "policy", "value")}
    following = model.dynamics.sample(state, torch.from_numpy(action), torch.from_numpy(uniform))
    np.savez(folder / "expected.npz", state=state, action=action, uniform=uniform, next_state=following, **answers)
    for format in ("pt2", "onnx"):
        (folder / format).mkdir()
        export(model, format, folder / format)


def compare(folder: Path) -> int:
    """In the environment: the largest difference of every output; 1 if one is too large."""
    import onnxruntime
    import torch

    assert importlib.util.find_spec("irl") is None, "irl is installed here"
    expected, worst = dict(np.load(folder / "expected.npz")), 0.0
    for name, graph in json.loads((folder / "pt2" / "schema.json").read_text("utf-8"))["graphs"].items():
        inputs = {key: expected[key] for key in graph["inputs"]}
        said = torch.export.load(folder / "pt2" / f"{name}.pt2").module()(*map(torch.from_numpy, inputs.values()))
        session = onnxruntime.InferenceSession(folder / "onnx" / f"{name}.onnx")
        found = {"pt2": said if isinstance(said, dict) else {"next_state": said}}
        found["onnx"] = dict(zip(graph["outputs"], session.run(None, inputs), strict=True))
        for format, key in ((f, k) for f in found for k in graph["outputs"] if k in expected):
            got, wanted = np.asarray(found[format][key]), expected[key]
            same = (np.isnan(got) == np.isnan(wanted)).all()
            error = float(np.nanmax(np.abs(got - wanted))) if same else np.inf
            worst = max(worst, error)
            print(f"{format:<5} {key:<11} {len(wanted):,} rows, largest difference {error:.1e}")
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, no irl: at most {TOLERANCE:g} is asked")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run")
    parser.add_argument("--venv", type=Path, help="where the environment is made (default: a folder that is removed)")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        sys.exit(compare(arguments.inside))
    with tempfile.TemporaryDirectory() as folder:
        prepare(arguments.run, Path(folder))
        venv, here = (arguments.venv or Path(folder) / "venv").resolve(), Path(__file__).resolve()
        python, pins = str(venv / "bin" / "python"), str(here.with_name("constraints.txt"))
        if not Path(python).exists():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", pins, *PACKAGES], check=True)
        sys.exit(subprocess.run([python, "-I", str(here), "--inside", folder], cwd=folder).returncode)
