"""A panel store gives the panel that its raw files give, and is refused where it is not what was written."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from irl.config import Config, InputError
from irl.data import read_panel, read_periods_per_year, read_table
from irl.data.panel import Panel, tensors_of
from irl.data.prepare import prepare
from irl.data.read import read_fitted
from irl.data.store import MANIFEST, is_store, open_store

pytest.importorskip("duckdb", reason="needs the extra `store`")
MEMBERS, PERIODS = 60, 6
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare.py"


@pytest.fixture
def rows() -> pd.DataFrame:
    """Members in no order, some with gaps, terminal rows, weights, clusters, and a column for every kind of state."""
    rng = np.random.default_rng(0)
    n = MEMBERS * PERIODS
    member, month = np.divmod(np.arange(n), PERIODS)
    left = np.where(month == 2, 1, 0)
    frame = pd.DataFrame(
        {
            "id": [f"m{(7 * i) % MEMBERS:03}" for i in member],
            "month": month,
            "plan": rng.choice(["none", "monthly"], n),
            "status": rng.choice(["out", "in"], n),
            "left": left,
            "uses": rng.poisson(3.0, n),
            "price": rng.choice([0.8, 1.0, 1.2], MEMBERS)[member],
            "region": rng.choice(["north", "south", "east"], MEMBERS)[member],
            "city": np.where(member % 2, "a", "b"),
            "w": rng.uniform(0.5, 2.0, MEMBERS)[member],
            "group": [f"g{i % 11}" for i in member],
            "known": rng.normal(size=n),
            "gone": False,
        }
    )
    frame.loc[left == 1, ["status", "plan"]] = ["locked", "monthly"]
    last = (month == PERIODS - 1) & (member % 5 == 0)
    frame.loc[last, ["status", "plan"]] = ["gone", None]
    frame.loc[(month == PERIODS - 1) & (member % 5 == 1), "gone"] = True
    kept = ~((month == 3) & (member % 4 == 0))
    return frame[kept].sample(frac=1.0, random_state=1).reset_index(drop=True)


def same(one: Panel, other: Panel) -> bool:
    """Whether two panels are equal to the last bit."""
    parts = zip(tensors_of(one).items(), tensors_of(other).items(), strict=True)
    equal = all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in parts)
    return equal and one.schema == other.schema and one.gaps == other.gaps


def test_a_category_that_says_who_a_member_is(study, rows, tmp_path):
    rows.assign(card=rows["id"]).to_parquet(tmp_path / "raw.parquet")
    state = study().model_dump()["data"]["state"] | {"card": {"kind": "category", "dynamics": "static"}}
    with pytest.raises(InputError, match="'card': a static category of 60 labels for 60 members says who"):
        prepare(study(path=str(tmp_path / "raw.parquet"), state=state), tmp_path / "store", bucket_rows=50)


def test_processes_read_their_own_buckets(study, rows, tmp_path):
    rows.to_parquet(tmp_path / "raw.parquet")
    store = prepare(study(path=str(tmp_path / "raw.parquet")), tmp_path / "store", bucket_rows=50)
    config = study(path=str(tmp_path / "store"), memory_rows=1)
    whole, parts = read_panel(config), [read_panel(config, share=(k, 3)) for k in range(3)]
    assert len(store.buckets) > 3 and whole.origin is None
    for part in parts:
        mine = (whole.member.unsqueeze(1) == part.origin.unique()).any(1)
        assert torch.equal(whole.state[mine], part.state) and torch.equal(whole.member[mine], part.origin)
    assert sum(part.n_rows for part in parts) == whole.n_rows
    assert sum(len(part.origin.unique()) for part in parts) == whole.n_members == MEMBERS
    assert store.share(0, len(store.buckets) + 1) is None
    few = study(path=str(tmp_path / "store"))
    assert read_panel(few, share=(1, 3)).origin is None  # read whole, and dealt out afterwards


STUDIES = {
    "plain": {},
    "weights": {"weight": "w", "cluster": "group"},
    "segments": {"segment": ["region", "city"]},
    "anchor": {"anchor": {"action": "none", "reward": "known"}},
    "exit": {"exit": "gone"},
    "until": {"until": 3, "held_out": {"price": [1.2]}, "terminal": {}},
    "dates": {"until": "2024-04-30", "terminal": {}},
    "months": {},
}


def dated(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows with the periods of a study."""
    if name == "dates":
        return rows.assign(month=pd.date_range("2024-01-31", periods=PERIODS, freq="ME").astype(str)[rows["month"]])
    return rows.assign(month=202401 + rows["month"]) if name == "months" else rows


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("name", STUDIES)
def test_a_store_gives_the_panel_of_its_raw_files(study, rows, tmp_path, name, suffix):
    frame, folder = dated(rows, name), tmp_path / "raw"
    folder.mkdir()
    for k, part in enumerate((frame[:100], frame[100:])):
        part.to_parquet(folder / f"{k}.parquet") if suffix == "parquet" else part.to_csv(folder / f"{k}.csv")
    config = study(path=str(folder), **STUDIES[name])
    store = prepare(config, tmp_path / "store", bucket_rows=70)
    assert len(store.buckets) > 3 and max(bucket.rows for bucket in store.buckets) < 70 + PERIODS
    raw, stored = read_panel(config), study(path=str(tmp_path / "store"), **STUDIES[name])
    assert same(read_panel(stored), raw)
    assert read_periods_per_year(stored) == read_periods_per_year(config)
    assert same(read_panel(stored, schema=raw.schema), read_panel(config, schema=raw.schema))
    if name not in ("until", "exit"):  # left-out rows are not in the store, nor are columns that are only conditions
        again = tmp_path / "again.parquet"
        read_table(str(tmp_path / "store")).to_parquet(again)
        lasting = study(path=str(again), **{k: v for k, v in STUDIES[name].items() if k != "until"})
        assert torch.equal(read_panel(lasting, schema=raw.schema).state, raw.state)


def test_a_large_store_is_the_same_panel_in_its_own_order(study, rows, tmp_path):
    rows.to_parquet(tmp_path / "raw.parquet")
    options = {"weight": "w", "cluster": "group"}
    config = study(path=str(tmp_path / "raw.parquet"), **options)
    store = prepare(config, tmp_path / "store", bucket_rows=70)
    mapped = read_panel(study(path=str(tmp_path / "store"), memory_rows=100, **options))
    raw, rank = read_panel(config), torch.from_numpy(np.concatenate([rank for _, rank in store.parts()]))
    assert mapped.scratch is not None and mapped.fingerprint == store.fingerprint
    assert not torch.equal(rank, rank.sort().values)  # a pseudo-random order
    order = rank[mapped.member].argsort(stable=True)
    for name, values in tensors_of(raw).items():
        if name in ("next_row", "next_choice"):
            at = torch.arange(raw.n_rows)
            hop, own = getattr(mapped, name)[order] - order, values - at
            assert torch.equal(torch.where(values < 0, -1, hop), torch.where(values < 0, -1, own)), name
        elif name != "member":
            assert torch.equal(getattr(mapped, name)[order], values), name
    assert torch.equal(rank[mapped.member][order], raw.member)
    some = store.mapped([1, 0])  # a process's share of the buckets
    assert some.n_rows == store.buckets[0].rows + store.buckets[1].rows


def test_members_are_mixed_whatever_their_identifiers(study, rows, tmp_path):
    rows.assign(id=rows["id"].str[1:].astype(int)).to_parquet(tmp_path / "raw.parquet")
    store = prepare(study(path=str(tmp_path / "raw.parquet")), tmp_path / "store", bucket_rows=70)
    means = [float(rank.mean()) for _, rank in store.parts()]
    assert max(means[:-1]) - min(means[:-1]) < MEMBERS / 2  # sorted ones would differ by most of the members
    again = prepare(study(path=str(tmp_path / "raw.parquet")), tmp_path / "again", bucket_rows=70)
    assert again.fingerprint == store.fingerprint


@pytest.fixture
def made(study, rows, tmp_path):
    """A store, and the study on it."""
    rows.to_parquet(tmp_path / "raw.parquet")
    prepare(study(path=str(tmp_path / "raw.parquet")), tmp_path / "store")
    return tmp_path / "store", study(path=str(tmp_path / "store"))


def test_rows_come_back_by_the_names_of_the_raw_files(made, rows):
    folder, config = made
    frame = read_fitted(config).sort_values(["id", "month"], ignore_index=True)
    raw = rows.sort_values(["id", "month"], ignore_index=True)
    assert frame["id"].tolist() == raw["id"].tolist() and frame["region"].tolist() == raw["region"].tolist()
    assert np.allclose(frame["price"], raw["price"]) and (frame["uses"] == raw["uses"]).all()
    with pytest.raises(InputError, match="there is no column 'city'"):
        read_table(str(folder), columns=["city"])


def test_what_never_changes_is_stored_once_and_codes_are_small(made):
    store = open_store(made[0])
    rows, members = store.table(0, "rows"), store.table(0, "members")
    assert "state.price" in members.column_names and "segment" in members.column_names
    assert {str(rows.schema.field(name).type) for name in ("period", "action", "state.uses")} == {"uint8"}


@pytest.mark.parametrize("what", ["changed", "cut short", "gone"])
def test_damaged_data_are_refused(made, what):
    folder, config = made
    file = folder / "rows" / "00000.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink() if what == "gone" else file.write_bytes(content if what == "changed" else content[:-9])
    with pytest.raises(InputError, match="prepare the store again"):
        read_panel(config)


def test_half_written_and_edited_stores_are_refused(made):
    folder, config = made
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"weight_mean": 2.0}))
    with pytest.raises(InputError, match="was changed since it was written"):
        read_panel(config)
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        read_panel(config)
    (folder / MANIFEST).unlink()
    assert is_store(folder)
    with pytest.raises(InputError, match="not finished"):
        read_panel(config)


def test_a_store_is_for_one_study(made, study):
    folder, _ = made
    with pytest.raises(InputError, match=r"differs in data.until"):
        read_panel(study(path=str(folder), until=2))
    reordered = study(path=str(folder)).model_dump(mode="json")
    reordered["data"]["state"] = dict(reversed(reordered["data"]["state"].items()))
    with pytest.raises(InputError, match=r"differs in data.columns"):
        read_panel(Config.model_validate(reordered))
    assert read_panel(study(path=str(folder), anchor={"action": "none", "reward": 1.5})).anchor_reward.unique() == 1.5


def test_folders_that_hold_something_are_kept(made, study, tmp_path):
    folder, config = made
    raw = study(path=str(tmp_path / "raw.parquet"))
    with pytest.raises(InputError, match="give --overwrite"):
        prepare(raw, folder)
    assert is_store(prepare(raw, folder, overwrite=True).folder)
    with pytest.raises(InputError, match="is a store already"):
        prepare(config, tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(InputError, match="not a store, and nothing replaces"):
        prepare(raw, tmp_path / "mine", overwrite=True)
    with pytest.raises(InputError, match="inside the raw files' folder"):
        prepare(study(path=str(tmp_path)), tmp_path / "store2")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"plan": "weekly"}, r"unknown action 'weekly'.*first: member m000, period 0"),
        ({"id": None}, "member column 'id': missing values"),
        ({"month": "soon"}, "period column 'month': neither"),
        ({"left": 7}, "not among its levels"),
        ({"region": "all"}, "a segment is called 'all'"),
    ],
)
def test_problems_of_the_rows_are_reported_and_nothing_is_left(study, rows, tmp_path, change, message):
    at = rows.index[(rows["id"] == "m000") & (rows["month"] == 0)]
    rows = rows.astype(dict.fromkeys(change, object))
    rows.loc[at, list(change)] = list(change.values())
    rows.to_csv(tmp_path / "raw.csv", index=False)
    rows.drop(at).to_csv(tmp_path / "clean.csv", index=False)
    wrong, right = (study(path=str(tmp_path / f"{name}.csv")) for name in ("raw", "clean"))
    with pytest.raises(InputError, match=message):
        prepare(wrong, tmp_path / "store", bucket_rows=70)
    assert {file.name for file in (tmp_path / "store").iterdir()} == {".lock", "provenance.json"}
    before = prepare(right, tmp_path / "store")  # what was left does not stand in the way
    with pytest.raises(InputError, match=message):
        prepare(wrong, tmp_path / "store", overwrite=True)
    assert open_store(before.folder).panel().n_rows == len(rows) - 1  # and a store stays until another is made


def run(*arguments: str) -> None:
    """scripts/prepare.py, in this process."""
    before, sys.argv = sys.argv, [str(SCRIPT), *arguments]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        sys.argv = before


def test_the_script_makes_a_store(study, rows, tmp_path, capsys):
    rows.to_parquet(tmp_path / "raw.parquet")
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study(path=str(tmp_path / "raw.parquet")).model_dump(mode="json"), sort_keys=False))
    out = str(tmp_path / "store")
    run("--config", str(file), "--out", out, "--memory", "300MB", "seed=3")
    assert f"{len(rows)} rows of {MEMBERS} members in 1 buckets" in capsys.readouterr().out
    assert same(read_panel(study(path=out)), read_panel(study(path=str(tmp_path / "raw.parquet"))))
    for wrong, said in ((["--memory", "lots", "--overwrite"], "write it as"), ([], "give --overwrite")):
        with pytest.raises(SystemExit) as ended:
            run("--config", str(file), "--out", out, *wrong)
        assert ended.value.code == 2 and said in capsys.readouterr().err
    assert is_store(out) and open_store(out).n_rows == len(rows)  # what is refused leaves it as it was


def test_without_duckdb_one_message_says_what_to_install(study, rows, tmp_path, monkeypatch):
    rows.to_parquet(tmp_path / "raw.parquet")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(InputError, match=r"pip install 'anchor-irl\[store\]'"):
        prepare(study(path=str(tmp_path / "raw.parquet")), tmp_path / "store")
