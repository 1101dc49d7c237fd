"""What is done around a script's work, beside messages (tests/test_runs.py has those)."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

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


def test_without_a_terminal_every_step_is_a_line_when_it_ends(monkeypatch):
    console, clock = Console(file=io.StringIO(), width=40), iter(range(0, 10**6, 25))
    monkeypatch.setattr(command.time, "monotonic", lambda: float(next(clock)))
    with command.progress(console) as tick:
        for done in range(5):
            tick("policy", done, 4, f"loss [{done}]")
        tick("refit", 1, 1)
    lines = console.file.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["policy: 2 of 4", "policy: 4 of 4", "refit: 1 of 1"]
    assert lines[1].endswith("loss [4]")  # the last that was heard of it; a line a minute before


def test_what_ends_with_an_error_says_how_far_it_came():
    console = Console(file=io.StringIO())
    with pytest.raises(ValueError, match="no"), command.progress(console) as tick:
        tick("policy", 3, 4)
        raise ValueError("no")
    assert "policy: 3 of 4" in console.file.getvalue()


def test_at_a_terminal_steps_are_bars():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with command.progress(console) as tick:
        command.of_training(tick)("policy", 4, 4, 0.5)
    said = console.file.getvalue()
    assert "━" in said and "held-out loss 0.5000" in said and "policy: " not in said
