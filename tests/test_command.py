"""What is done around a script's work, beside messages (tests/test_runs.py has those)."""

from types import SimpleNamespace

import pytest

from irl import command


@pytest.mark.parametrize(("named", "asked"), [({}, 3), ({"MALLOC_ARENA_MAX": "1"}, 0)])
def test_freed_memory_is_kept_unless_the_environment_says_how(monkeypatch, named, asked):
    calls = []
    monkeypatch.setattr(command.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *a: calls.append(a)))
    monkeypatch.setattr(command.os, "environ", named)
    command.keep_memory()
    assert len(calls) == asked


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(command.ctypes, "CDLL", lambda name: SimpleNamespace())
    command.keep_memory()
