"""The set-up that both commands share, on a copy with an interpreter that only pretends to install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRETENDER = """#!/bin/bash
case "$*" in
    *"pip install"*) pwd >>"{log}"; echo "$*" >>"{log}"; exit {code} ;;
    "-m venv "*) mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python" ;;
    "-m pytest"*) echo "pytest in $PWD with ${{*:4}}" ;;
    *) exec "{python}" "$@" ;;
esac
"""


@pytest.fixture
def copy(tmp_path):
    """A checkout in a folder with spaces in its name, without .venv."""
    root = tmp_path / "a checkout, with spaces"
    root.mkdir()
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def _pretender(folder: Path, *, code: int = 0) -> Path:
    path = folder / "pretending python"
    path.write_text(PRETENDER.format(log=folder / "log", python=sys.executable, code=code))
    path.chmod(0o755)
    return path


def _test_sh(root: Path, *arguments: str, python: Path | str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": str(python), "CDPATH": "/"}
    command = ["bash", str(root / "scripts" / "test.sh"), *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)


def test_it_installs_once_from_anywhere_and_again_when_the_pins_change(copy):
    python, log = _pretender(copy.parent), copy.parent / "log"
    for _ in range(2):
        result = _test_sh(copy, "-k", "two words", python=python)
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith(
            f"pytest in {copy} with -n 2 --dist loadfile --no-loadscope-reorder -k two words\n"
        )
    place, command = log.read_text().splitlines()
    assert place == str(copy)
    assert command.endswith("-c scripts/constraints.txt -e .[dev]")
    with open(copy / "scripts" / "constraints.txt", "a", encoding="utf-8") as file:
        file.write("# changed\n")
    _test_sh(copy, python=python)
    assert len(log.read_text().splitlines()) == 4


def test_an_installation_that_failed_is_tried_again(copy):
    result = _test_sh(copy, python=_pretender(copy.parent, code=1))
    assert result.returncode == 1
    assert "pytest in" not in result.stdout
    shutil.rmtree(copy / ".venv" / "bin")
    result = _test_sh(copy, python=_pretender(copy.parent))
    assert "pytest in" in result.stdout
    assert len((copy.parent / "log").read_text().splitlines()) == 4


def test_a_python_that_does_not_serve_is_refused_by_name(copy):
    result = _test_sh(copy, python="/bin/false")
    assert result.returncode == 1
    assert "error: /bin/false: need Python 3.11 or newer" in result.stderr
    assert not (copy / ".venv").exists()


def test_a_broken_environment_is_named_not_removed(copy):
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "python").symlink_to("/bin/false")
    result = _test_sh(copy, python=_pretender(copy.parent))
    assert result.returncode == 1
    assert ".venv is not a working environment" in result.stderr
    assert (copy / ".venv" / "bin" / "python").exists()
