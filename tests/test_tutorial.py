"""The tutorial runs from top to bottom and leaves a report, a model card and figures for TensorBoard."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "tutorial"
    monkeypatch.setattr(sys, "argv", ["tutorial.py", str(folder)])
    names = runpy.run_path(str(ROOT / "scripts" / "tutorial.py"), run_name="__main__")
    scores = names["scores"]
    assert scores.loc["pooled", "r2"] > 0.95 and scores.loc["monthly", "within"] > 0.7
    change = names["last"].query("segment == 'all' and outcome == 'share_annual'")["change"].item()
    assert -0.2 < change < -0.01
    said = capsys.readouterr().out
    assert "counts most" in said or "cannot be told apart" in said
    assert (folder / "report.html").is_file() and (folder / "model_card.md").is_file()
    assert (folder / "tb" / "summary").is_dir()
