"""The import contracts of pyproject.toml hold, and each of them notices what it forbids."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True)


def test_imports_run_one_way():
    result = _lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("bellman.py", "import irl.networks", "imports run one way"),
        ("config.py", "import irl.runs", "imports run one way"),
        ("runs.py", "import irl.bellman", "imports run one way"),
        ("runs.py", "import irl", "imports run one way"),  # and so, indirectly, all that irl gives on first use
        ("estimation/policy.py", "import irl.counterfactual.solve", "imports run one way"),
        ("homeless.py", "", "imports run one way"),
        ("networks.py", "import lightning.pytorch", "lightning is imported only inside irl.estimation"),
        ("estimation/policy.py", "import pandas", "pandas appears only where frames come in or go out"),
        ("counterfactual/solve.py", "import pandas", "pandas appears only where frames come in or go out"),
        ("dynamics.py", "from pandas import DataFrame", "pandas appears only where frames come in or go out"),
    ],
)
def test_a_planted_import_is_noticed(tmp_path, module, line, broken):
    shutil.copytree(ROOT / "irl", tmp_path / "irl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path in (*(f"{p}/__init__.py" for p in ("counterfactual", "estimation")), "counterfactual/solve.py", module):
        (tmp_path / "irl" / path).parent.mkdir(exist_ok=True)
        with open(tmp_path / "irl" / path, "a", encoding="utf-8") as file:
            file.write(f"\n{line}\n" if path == module else "\n")
    result = _lint(tmp_path)
    assert result.returncode == 1
    assert f"{broken} BROKEN" in result.stdout, result.stdout + result.stderr


def test_the_package_imports_neither_scripts_nor_tests():
    found = []
    for path in sorted((ROOT / "irl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
                names = [node.module or ""]
            found += [f"{path}:{node.lineno}" for n in names if n.split(".")[0] in ("scripts", "tests")]
    assert not found
