"""Panels from Parquet or CSV: a file, a folder (searched in depth) or a glob; only the columns that are needed.

CSV columns are read as text and typed as a whole over all files: integers, then numbers, then booleans, else text.
Digits with leading zeros (``007``) and integers beyond 64 bits stay text, so identifiers survive. Empty cells and the
usual marks (``NA``, ``NaN``, ``null`` …; not ``None``) are missing. Relative paths start at the current directory. In a
folder, also one that a glob matches, names that start with ``.`` or ``_`` and other kinds of files are passed over.
Limits: UTF-8 and commas only; partition folders (``year=2024/``) do not become columns.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from irl.config import Config, InputError, nearest
from irl.data.encode import factorized
from irl.data.panel import Panel, panel_from_frame
from irl.data.periods import periods_per_year
from irl.data.rows import data_columns, study_columns
from irl.data.schema import StateSchema
from irl.data.split import fitted_rows, held_out
from irl.data.store import is_store, open_store
from irl.declared import Data

PARQUET, CSV = (".parquet", ".pq"), (".csv", ".csv.gz")
Result = TypeVar("Result")


def read_panel(config: Config, *, schema: StateSchema | None = None, share: tuple[int, int] = (0, 1)) -> Panel:
    """The panel of a study, from ``config.data.path``: the rows that are fitted on (:mod:`irl.data.split`).

    The path may be a store (:mod:`irl.data.store`). It gives the same panel, to the last bit, up to
    ``data.memory_rows`` rows; a larger one is in files, and its members come in the store's order. Of that, one of
    several processes (``share``: its number, and how many) may read some buckets alone: its part (``Panel.origin``).

    Raises
    ------
    InputError
        If nothing can be read, or naming every problem of the rows.
    """
    path = config.data.path
    if is_store(path):
        store = open_store(path, config)
        if schema is not None and schema != store.schema:
            return panel_from_frame(store.frame(), config, schema=schema, source=path)
        if store.n_rows <= config.data.memory_rows:
            return store.panel()
        return (store.share(*share) if share[1] > 1 else None) or store.mapped()
    columns = tuple(dict.fromkeys([*study_columns(config), *config.data.held_out]))
    files = files_at(path)
    names = column_names(files, columns)
    # With a name wrong, all columns are read: the message can then suggest one and still check the rest.
    everything = not set(columns) <= set(names)
    frame = _frame(files, names if everything else list(columns))
    rows = fitted_rows(frame, config.data)
    if schema is None and config.data.held_out and not held_out(frame, config.data).any():
        raise InputError(f"{path}: `data.held_out` holds for no row; check its values against the columns")
    return panel_from_frame(rows, config, schema=schema, source=path)


def read_periods_per_year(config: Config) -> float | None:
    """Periods in a year if the study's periods are dates, else None; errors as in :func:`read_panel`."""
    data = config.data
    if is_store(data.path):
        return open_store(data.path, config).calendar.periods_per_year
    frame = read_table(data.path, columns=(data.member, data.period))
    return periods_per_year(frame[data.period], factorized(frame[data.member])[0])


def read_frame(data: Data, *, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """The rows of ``data.path`` in the files' order; the columns that ``data`` names, or those given."""
    return read_table(data.path, columns=data_columns(data) if columns is None else columns)


def read_fitted(config: Config) -> pd.DataFrame:
    """The rows that a study is fitted on, with the columns that it reads; of a store, those that it keeps."""
    data = config.data
    if is_store(data.path):
        store = open_store(data.path, config)
        return store.frame([name for name in study_columns(config) if name in store.columns])
    columns = dict.fromkeys([*study_columns(config), *data.held_out])
    return fitted_rows(read_table(data.path, columns=columns), data)


def read_members(config: Config, schema: StateSchema) -> pd.DataFrame | Panel:
    """The rows that a study was fitted on, with its schema: a frame; or the panel of a store that is too large for one
    (unless there are hidden types, which are drawn for a frame)."""
    path = config.data.path
    if is_store(path) and not schema.hidden and open_store(path, config).n_rows > config.data.memory_rows:
        return read_panel(config, schema=schema)
    return read_fitted(config)


def read_table(path: str, *, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """The rows at ``path`` (of a store, too) in the files' order; all columns, or those given.

    Raises
    ------
    InputError
        If there is nothing to read, a file cannot be read, or a column is missing.
    """
    if is_store(path):
        return open_store(path).frame(columns)
    files = files_at(path)
    given = None if columns is None else list(dict.fromkeys(columns))
    names = column_names(files, given or ())
    wanted = names if given is None else given
    lost = [f"there is no column {name!r}{nearest(name, names)}" for name in wanted if name not in names]
    if lost:
        raise InputError(f"{path}:\n  " + "\n  ".join(lost))
    return _frame(files, wanted)


def files_at(path: str) -> list[Path]:
    """The files at ``path``, sorted, all of one format."""
    place = Path(path).expanduser()
    if place.is_file():
        if format_of(place) is None:
            raise InputError(f"{path}: neither Parquet nor CSV by its name; call it .parquet, .csv or .csv.gz")
        return [place]
    if place.is_dir():
        found = _inside(place)
    elif glob.has_magic(path):
        matched = [Path(p) for p in glob.glob(str(place), recursive=True)]
        found = list({p for m in matched for p in ([m] if m.is_file() else _inside(m))})
    else:
        siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        hint = nearest(place.name, siblings) if siblings else ""
        raise InputError(f"{path}: no such file or folder (looked from {Path.cwd()}){hint}")
    files = sorted(p for p in found if p.is_file() and format_of(p) is not None)
    if not files:
        what = "the folder holds" if place.is_dir() else "the pattern matches"
        raise InputError(f"{path}: {what} no .parquet or .csv file (looked from {Path.cwd()})")
    other = next((p for p in files if format_of(p) != format_of(files[0])), None)
    if other is not None:
        raise InputError(f"{path}: Parquet and CSV are mixed ({files[0].name}, {other.name}); keep one of them")
    return files


def _inside(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if not any(x[0] in "._" for x in p.relative_to(folder).parts)]


def format_of(file: Path) -> str | None:
    """The format that a file has by its name: parquet, csv or None."""
    name = file.name.lower()
    return "parquet" if name.endswith(PARQUET) else "csv" if name.endswith(CSV) else None


def column_names(files: list[Path], wanted: Iterable[str] = ()) -> list[str]:
    """The columns that all files have; InputError naming the files in which a wanted one cannot be found."""
    per_file = of_each(files, _names)
    lines = []
    for file, names in zip(files, per_file, strict=True):
        lost = [name for name in wanted if name not in names and any(name in other for other in per_file)]
        twice = [name for name in wanted if names.count(name) > 1]
        if lost:
            lines.append(f"{file}: there is no column {', '.join(map(repr, lost))}, and other files have it")
        if twice:
            lines.append(f"{file}: column {', '.join(map(repr, twice))} appears twice")
    for file, names in zip(files, per_file, strict=True):
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
            raise InputError(f"{file}: one column named {names[0][:60]!r}; columns have to be separated by commas")
    if lines:
        raise InputError("the columns of the files cannot be told apart or put together:\n  " + _some(lines))
    return [name for name in dict.fromkeys(per_file[0]) if all(name in names for names in per_file)]


def _frame(files: list[Path], columns: list[str]) -> pd.DataFrame:
    tables = of_each(files, lambda file: _table(file, columns))
    if format_of(files[0]) == "csv":
        table = pa.concat_tables(tables)
        return pandas_of(pa.table([_typed(table[name]) for name in columns], names=columns))
    try:
        return pandas_of(pa.concat_tables(tables, promote_options="permissive"))
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # text in one file, a number in another: labels do not mind
        return pd.concat([pandas_of(table) for table in tables], ignore_index=True)


def pandas_of(table: pa.Table) -> pd.DataFrame:
    """The table as a frame, by its columns alone."""
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)  # else a stored pandas index hides its columns
    return frame


def of_each(files: list[Path], read: Callable[[Path], Result]) -> list[Result]:
    """``read`` of every file; one InputError that names all that cannot be read."""
    results, lines = [], []
    for file in files:
        try:
            results.append(read(file))
        except (pa.ArrowException, OSError) as error:
            size = file.stat().st_size if file.exists() else 0
            why = "the file is empty" if size == 0 else " ".join(str(error).split())[:200]
            lines.append(f"{file}: {why}")
    if lines:
        remedy = (
            "Check that the files are whole (an interrupted copy?), are what their names say, and that CSV is UTF-8."
        )
        raise InputError("cannot be read:\n  " + _some(lines) + f"\n{remedy}")
    return results


def _some(lines: list[str]) -> str:
    rest = [f"… and {len(lines) - 20} more"] if len(lines) > 20 else []
    return "\n  ".join([*lines[:20], *rest])


def _names(file: Path) -> list[str]:
    if format_of(file) == "parquet":
        with pyarrow.parquet.ParquetFile(file) as parquet:
            return list(parquet.schema_arrow.names)
    with pyarrow.csv.open_csv(file, convert_options=as_text(())) as reader:
        return list(reader.schema.names)


def _table(file: Path, columns: list[str]) -> pa.Table:
    if format_of(file) == "parquet":
        with pyarrow.parquet.ParquetFile(file) as parquet:
            return parquet.read(columns=columns)
    return pyarrow.csv.read_csv(file, convert_options=as_text(columns))


def as_text(columns: Iterable[str]) -> pyarrow.csv.ConvertOptions:
    """How CSV columns are read."""
    return pyarrow.csv.ConvertOptions(
        include_columns=list(columns),
        column_types={name: pa.string() for name in columns},
        strings_can_be_null=True,
    )


class Typing:
    """The narrowest of integer, number and boolean that fits every value of a column of text, which may come in parts;
    else text."""

    def __init__(self) -> None:
        self._plain, self._digits = True, True  # no leading zeros; digits only
        self._fits = {pa.int64(): True, pa.float64(): True, pa.bool_(): True}

    def add(self, values: pa.Array | pa.ChunkedArray) -> None:
        self._plain &= not pc.any(pc.match_substring_regex(values, r"^[+-]?0\d")).as_py()
        self._digits &= pc.all(pc.match_substring_regex(values, r"^[+-]?\d+$")).as_py() is not False
        for kind in (kind for kind, fits in self._fits.items() if fits):
            try:
                values.cast(kind)
            except pa.ArrowInvalid:
                self._fits[kind] = False

    @property
    def kind(self) -> pa.DataType:
        if not self._plain or (self._digits and not self._fits[pa.int64()]):
            return pa.string()
        return next((kind for kind, fits in self._fits.items() if fits), pa.string())


def _typed(values: pa.ChunkedArray) -> pa.ChunkedArray:
    typing = Typing()
    typing.add(values)
    return values.cast(typing.kind)
