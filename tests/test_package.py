"""The package's habits: quick to import, every module introduced, files of a readable size, pins complete."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import irl

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "irl").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_importing_the_package_is_quick_and_loads_nothing_heavy():
    script = (
        "import time; start = time.perf_counter(); import irl, sys; took = time.perf_counter() - start;"
        "heavy = {'torch', 'pandas', 'lightning', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'{took:.1f} s, {heavy}' if took > 3 or heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_public_names_are_found_where_they_are_defined():
    from irl.counterfactual import simulate
    from irl.fitted import load

    assert irl.load is load
    assert irl.simulate is simulate
    assert re.fullmatch(r"\d+\.\d+\.\d+", irl.__version__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = irl.lode


def test_every_module_begins_with_a_docstring():
    files = MODULES + SCRIPTS
    missing = [str(p.relative_to(ROOT)) for p in files if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert not missing


def test_files_keep_a_readable_size():
    limits = [(p, 400) for p in MODULES] + [(p, 80) for p in SCRIPTS if p.parent.name == "scripts"]
    lengths = [(p, len(p.read_text("utf-8").splitlines()), limit) for p, limit in limits]
    long = [f"{p.relative_to(ROOT)}: {n} lines, limit {limit}" for p, n, limit in lengths if n > limit]
    assert not long, "\n".join(long)


def test_types_are_shipped():
    assert (ROOT / "irl" / "py.typed").exists()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("data/membership.parquet", True),
        ("runs/quickstart/run/metrics.json", True),
        (".venv/bin/python", True),
        ("checkpoints/mine/model/weights.safetensors", True),
        ("checkpoints/membership/model/weights.safetensors", False),
        ("checkpoints/membership/sample.parquet", False),
        ("checkpoints/membership/recorded.json", False),
        ("checkpoints/membership/.lock", True),
        ("checkpoints/membership/scenarios/annual_price/outcomes.parquet", True),
        ("irl/data/panel.py", False),
        ("tests/data/test_panel.py", False),
        ("irl/runs.py", False),
    ],
)
def test_git_ignores_what_studies_leave_and_no_code(path, ignored):
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", "-q", path]
    assert subprocess.run(command).returncode == (0 if ignored else 1)


def test_every_dependency_is_pinned_to_one_version():
    lines = (ROOT / "scripts" / "constraints.txt").read_text("utf-8").splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert re.fullmatch(r"==[^,*+]+", str(requirement.specifier)), f"{line}: pin one version, no local suffix"
            pins[canonicalize_name(requirement.name)] = str(requirement.specifier)[2:]
    wanted = PROJECT["dependencies"] + [
        r for e in ("dev", "data", "export", "gym") for r in PROJECT["optional-dependencies"][e]
    ]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != canonicalize_name(PROJECT["name"]):
            assert name in pins, f"{name} is not in scripts/constraints.txt"
            assert requirement.specifier.contains(pins[name]), f"{name}: the pin is not what pyproject.toml allows"
