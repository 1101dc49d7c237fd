"""The same panel from Parquet and CSV, from a file, a folder and a glob; and what cannot be read."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from irl.config import InputError
from irl.data import panel_from_frame, read_frame, read_panel, read_table
from irl.data.panel import tensors_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(frame, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "csv.gz"])
def test_file_folder_and_glob_agree(here, study, frame, suffix):
    frame = frame.assign(extra=1, region=frame["region"] == "east")
    write(frame, here / f"one.{suffix}")
    for i in range(3):
        write(frame.iloc[i::3], here / "many" / f"deep{i}" / f"part.{suffix}")
    (here / "many" / "_SUCCESS").touch()
    (here / "many" / "README").write_text("not data")
    write(frame.iloc[:1], here / "many" / f".hidden.{suffix}")
    expected = panel_from_frame(frame, study())
    for path in (
        f"one.{suffix}",
        "many",
        f"many/**/*.{suffix}",
        f"many/deep?/part.{suffix}",
        "man?",
        "many/*",
        str(here / "many"),
    ):
        panel = read_panel(study(path=path))
        assert panel.schema == expected.schema
        for name, values in tensors_of(panel).items():
            assert torch.equal(values, tensors_of(expected)[name]), (path, name)


def test_only_needed_columns_are_read(here, study, frame):
    write(frame.assign(extra=1, lasts=1), here / "panel.parquet")
    assert set(read_frame(study().data).columns) == set(frame.columns)
    assert "lasts" in read_frame(study(duration="lasts").data)
    assert list(read_frame(study().data, columns=["price", "extra"]).columns) == ["price", "extra"]
    assert set(read_table("panel.parquet").columns) == {*frame.columns, "extra", "lasts"}


def test_a_stored_pandas_index_is_a_column(here, study, frame):
    frame.set_index(["id", "month"]).to_parquet(here / "panel.parquet")
    assert read_panel(study()).n_members == 2


def test_csv_types(here):
    (here / "a.csv").write_text("code,n,x,flag,text,long,gone\n007,1,1,true,a,12345678901234567890,\n")
    (here / "b.csv").write_text("code,n,x,flag,text,long,gone\n1,,1.5,False,NA,1,\n")
    frame = read_table("*.csv")
    assert frame["code"].tolist() == ["007", "1"]
    assert frame["n"].iloc[0] == 1 and frame["n"].isna().iloc[1]
    assert frame["x"].tolist() == [1.0, 1.5]
    assert frame["flag"].tolist() == [True, False]
    assert frame["text"].iloc[0] == "a" and frame["text"].isna().iloc[1]
    assert frame["long"].tolist() == ["12345678901234567890", "1"]
    assert frame["gone"].isna().all()


def test_files_may_store_a_column_differently(here, study, frame):
    write(frame.iloc[:5].astype({"left": str}), here / "p" / "a.parquet")
    write(frame.iloc[5:].astype({"region": "category"}), here / "p" / "b.parquet")
    panel = read_panel(study(path="p"))
    assert torch.equal(panel.state, panel_from_frame(frame, study()).state)


def test_wrong_columns_are_told_with_everything_else(here, study, frame):
    write(frame.rename(columns={"price": "prices"}).assign(uses=-1), here / "panel.csv")
    with pytest.raises(InputError) as caught:
        read_panel(study(path="panel.csv"))
    message = str(caught.value)
    assert message.startswith("panel.csv: 2 problems")
    assert "no column 'price'; did you mean 'prices'?" in message and "'uses' (count)" in message
    with pytest.raises(InputError, match="'price'; did you mean 'prices'"):
        read_frame(study(path="panel.csv").data)


def damaged(here, frame):
    write(frame, here / "whole.parquet")
    content = (here / "whole.parquet").read_bytes()
    (here / "cut.parquet").write_bytes(content[: len(content) // 2])
    (here / "zero.parquet").touch()
    (here / "zero.csv").touch()
    (here / "ragged.csv").write_text("id,month\n1,2\n1\n")
    (here / "latin.csv").write_bytes("id,month\nMünchen,2\n".encode("latin-1"))
    (here / "panel.xlsx").touch()
    (here / "empty").mkdir()
    write(frame, here / "mixed" / "a.csv")
    write(frame, here / "mixed" / "b.parquet")
    write(frame, here / "uneven" / "a.csv")
    write(frame.drop(columns="price"), here / "uneven" / "b.csv")
    (here / "twice.csv").write_text("id,plan,id\n1,none,2\n")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("whole.parquett", r"no such file or folder \(looked from .*did you mean 'whole.parquet'"),
        ("nowhere/panel.csv", "no such file or folder"),
        ("cut.parquet", "cannot be read:\n  cut.parquet: .*\nCheck that the files are whole"),
        ("zero.parquet", "the file is empty"),
        ("zero.csv", "the file is empty"),
        ("ragged.csv", "Expected 2 columns, got 1"),
        ("latin.csv", "cannot be read:\n  latin.csv: .*UTF8"),
        ("panel.xlsx", "neither Parquet nor CSV"),
        ("empty", "the folder holds no .parquet or .csv"),
        ("nothing*.csv", "the pattern matches no"),
        ("mixed", r"mixed \(a.csv, b.parquet\)"),
        ("twice.csv", "twice.csv: column 'id' appears twice"),
        ("uneven", "uneven/b.csv: there is no column 'price', and other files have it"),
    ],
)
def test_what_cannot_be_read(here, study, frame, path, message):
    damaged(here, frame)
    with pytest.raises(InputError, match=message):
        read_panel(study(path=path))


def test_all_unreadable_files_are_named(here, study, frame):
    damaged(here, frame)
    with pytest.raises(InputError, match=r"cut.parquet: .*\n  zero.parquet: the file is empty"):
        read_panel(study(path="*.parquet"))


def test_a_header_without_rows(here, study, frame):
    for name in ("panel.csv", "panel.parquet"):
        write(frame.iloc[:0], here / name)
        with pytest.raises(InputError, match="there are no rows"):
            read_panel(study(path=name))


def test_rows_are_counted_over_all_files(here, study, frame):
    write(frame.iloc[:5], here / "p" / "a.csv")
    write(frame.iloc[5:].assign(uses=[0, -3, 0]), here / "p" / "b.csv")
    with pytest.raises(InputError, match=r"row 7, member 9, period 3: '-3'"):
        read_panel(study(path="p"))


def test_semicolons_are_recognised(here, study, frame):
    frame.to_csv(here / "panel.csv", index=False, sep=";")
    with pytest.raises(InputError, match="separated by commas"):
        read_panel(study(path="panel.csv"))


def test_home_is_expanded(here, study, frame, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    write(frame, here / "panel.csv")
    assert isinstance(read_frame(study(path="~/panel.csv").data), pd.DataFrame)
