"""From raw files of any size and order to a panel store (:mod:`irl.data.store`), in memory that does not grow.

1. DuckDB sorts the rows so that each member's are together, members in a pseudo-random order; they are cut into buckets
   of whole members (``BUCKET_ROWS`` rows or a few more).
2. What a panel fits as a whole is learned bucket by bucket: labels, means, segments, how periods are counted.
3. Every bucket is checked and coded by the code that reads raw files, and written.

DuckDB sorts because it has what this needs in one process and no configuration: an external merge sort and joins that
spill to a folder of one's choice under a stated memory limit, fed by a stream of Arrow batches. (polars' streaming sort
spills too, but its memory cannot be limited.) Types, missing values and CSV are read here, as for raw panels, so that
both come to the same.

Limits: one member's rows have to fit in memory; problems of the rows are reported for the first bucket that has any.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from irl import runs
from irl.config import Config, InputError, nearest
from irl.data.encode import Ints, labelled
from irl.data.exact import Moments
from irl.data.fit import SchemaFit, fit_problems
from irl.data.panel import links_of
from irl.data.periods import Calendar, calendar_of, moments_of, units_apart
from irl.data.read import column_names, files_at, pandas_of
from irl.data.rows import Rows, checked_rows, study_columns
from irl.data.schema import StateSchema
from irl.data.split import fitted_rows, held_out
from irl.data.store import (
    FORMAT,
    MANIFEST,
    STATE,
    Bucket,
    Store,
    file_of,
    fingerprint_of,
    is_store,
    open_store,
    study_of,
)
from irl.data.stream import Stream

BUCKET_ROWS = 200_000
"""A bucket is closed with the member that brings it to so many rows."""
RANK = "(rank)"
"""The column of a sorted row's place in the order of the members' identifiers; no study's column is called so."""
STAGING = "staging"
Tick = Callable[[str, int, int], None]
"""(stage, rows done, rows in all or 0 where unknown)."""


def prepare(
    config: Config,
    out: str | Path,
    *,
    memory: str = "2GB",
    overwrite: bool = False,
    bucket_rows: int = BUCKET_ROWS,
    tick: Tick = lambda stage, done, of: None,
) -> Store:
    """Make the store ``out`` of the raw files at ``config.data.path``.

    Parameters
    ----------
    memory : what the sort may use, as "2GB"; coding a bucket takes a few hundred MB more.
    overwrite : whether a store that is there may be replaced.

    Raises
    ------
    InputError
        If the raw files cannot be read, have problems, or the folder cannot be used.
    """
    path = config.data.path
    if not re.fullmatch(r"[1-9]\d*(\.\d+)? ?[MGT]i?B", memory):
        raise InputError(f"--memory {memory}: write it as 500MB or 2GB")
    if is_store(path):
        raise InputError(f"{path}: is a store already; `data.path` has to name the raw files that one is made of")
    if Path(out).resolve().is_relative_to(Path(path).expanduser().resolve()):
        raise InputError(f"--out {out}: lies inside the raw files' folder {path}, and would be read with it")
    files, columns = files_at(path), list(dict.fromkeys([*study_columns(config), *config.data.held_out]))
    names = column_names(files, columns)
    lost = [f"there is no column {name!r}{nearest(name, names)}" for name in columns if name not in names]
    if lost:
        raise InputError(f"{path}:\n  " + "\n  ".join(lost))
    stream = Stream(files, columns)
    with _folder(Path(out), overwrite) as folder:
        staging = folder / STAGING
        staged = _Staged(staging, config)
        staged.fill(_sorted(stream, config, staging, memory, tick), bucket_rows)
        written = _Writer(staging, config, staged)
        written.write(tick)
        manifest = written.manifest(source=_source(files))
        (folder / MANIFEST).unlink(missing_ok=True)  # what was there is a store until now, and what comes is one after
        for name in ("rows", "members"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (staging / name).rename(folder / name)
        runs.write_json(folder / MANIFEST, manifest)
    return open_store(out, config)


@contextmanager
def _folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Hold the folder for a store, with an empty ``STAGING`` in it that is removed in the end; a store that is there
    stays until it is replaced."""
    runs.make_folder(folder)
    with runs.locked(folder):
        there = [entry for entry in folder.iterdir() if entry.name != runs.LOCK]
        if there and not is_store(folder):
            raise InputError(
                f"{folder}: holds files that are not a store, and nothing replaces those; choose another --out"
            )
        if (folder / MANIFEST).is_file() and not overwrite:
            raise InputError(
                f"{folder}: a store is already here; give --overwrite to replace it, or choose another --out"
            )
        runs.write_json(folder / runs.PROVENANCE, asdict(runs.provenance("store")))
        shutil.rmtree(folder / STAGING, ignore_errors=True)
        for name in ("rows", "members"):
            (folder / STAGING / name).mkdir(parents=True)
        try:
            yield folder
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); is the disk full?") from None
        finally:
            shutil.rmtree(folder / STAGING, ignore_errors=True)


def _sorted(stream: Stream, config: Config, folder: Path, memory: str, tick: Tick) -> Iterator[pa.Table]:
    """All rows, each member's together, members in a pseudo-random order, with their ``RANK``."""
    try:
        import duckdb
    except ImportError:
        raise InputError("sorting raw files needs the package duckdb: pip install 'anchor-irl[store]'") from None
    of = stream.n_rows or 0
    names = [f"c{k}" for k in range(len(stream.columns))]  # DuckDB's do not tell upper case from lower
    member = names[stream.columns.index(config.data.member)]

    def counted() -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in stream.batches():
            yield batch.rename_columns(names)
            done += batch.num_rows
            tick("read", done, of or done)

    settings: dict[str, Any] = {"memory_limit": memory, "temp_directory": str(folder)}
    settings["preserve_insertion_order"] = False
    schema = pa.schema([field.with_name(name) for field, name in zip(stream.schema, names, strict=True)])
    try:
        with duckdb.connect(str(folder / "sort.duckdb"), config=settings) as database:
            database.register("source", pa.RecordBatchReader.from_batches(schema, counted()))
            database.execute("CREATE TABLE panel AS SELECT * FROM source")
            missing = database.sql(f"SELECT count(*) FROM panel WHERE {member} IS NULL").fetchall()[0][0]
            if missing:
                what = f"member column {config.data.member!r}: missing values ({missing:,} rows)"
                raise InputError(f"{config.data.path}: {what}")
            database.execute(
                "CREATE TABLE members AS SELECT member, rank, "
                f"row_number() OVER (ORDER BY md5_number_lower(concat(rank, ':', {config.seed})), rank) AS place "
                "FROM (SELECT member, row_number() OVER (ORDER BY member) - 1 AS rank "
                f"FROM (SELECT DISTINCT {member} AS member FROM panel))"
            )
            tick("sort", 0, of)
            query = f"SELECT panel.*, rank FROM panel JOIN members ON {member} = member ORDER BY place"
            done = 0
            for batch in database.sql(query).to_arrow_reader(65_536):
                yield pa.Table.from_batches([batch]).rename_columns([*stream.columns, RANK])
                done += batch.num_rows
                tick("sort", done, of or done)
    except duckdb.Error as error:
        why = " ".join(str(error).split())[:300]
        raise stream.failure or InputError(
            f"{config.data.path}: the rows could not be sorted ({why}); give more --memory, or an --out on a disk with "
            "more room"
        ) from None


class _Staged:
    """The sorted rows in buckets of whole members, raw; and what is learned of the whole panel from them."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config, self.files = folder, config, list[Path]()
        self.fit, self.calendar = SchemaFit(config), Calendar("integers")
        self.weights, self.clusters, self.held_out = Moments(), set[str](), False
        self.rows = self.members = 0

    def fill(self, tables: Iterator[pa.Table], bucket_rows: int) -> None:
        """Cut the rows into buckets, then learn from them."""
        periods, apart = list[pd.Series](), np.ones(5, dtype=bool)
        for k, table in enumerate(_buckets(tables, bucket_rows)):
            self.files.append(self.folder / f"{k:05}.parquet")
            pyarrow.parquet.write_table(table, self.files[-1])
            frame = pandas_of(table)
            period, member = frame[self.config.data.period], frame[RANK].to_numpy()
            moments = moments_of(period)
            apart &= units_apart(moments, member, moments.notna().to_numpy(dtype=bool))
            periods.append(period.drop_duplicates())
        if not self.files:
            raise InputError(f"{self.config.data.path}: there are no rows")
        values = pd.concat(periods, ignore_index=True).drop_duplicates(ignore_index=True)
        self.calendar = calendar_of(values, np.full(len(values), -1, dtype=np.int64))
        self.calendar = replace(self.calendar, unit=int(apart.argmax()) if self.calendar.kind == "dates" else 0)
        for frame in self.frames():
            self._learn(frame)
        if not self.rows:
            raise InputError("no row is left to fit on: `data.held_out` and `data.until` leave out everything")
        if self.config.data.held_out and not self.held_out:
            raise InputError(
                f"{self.config.data.path}: `data.held_out` holds for no row; check its values against the columns"
            )

    def frames(self) -> Iterator[pd.DataFrame]:
        """The rows of each bucket that are fitted on; none of a bucket that has none."""
        for file in self.files:
            frame, data = pandas_of(pyarrow.parquet.read_table(file)), self.config.data
            if data.held_out:
                self.held_out |= bool(held_out(frame, data).any())
            frame = fitted_rows(frame, data, self.calendar)
            if len(frame):
                yield frame

    def _learn(self, frame: pd.DataFrame) -> None:
        data = self.config.data
        self.rows += len(frame)
        self.members += frame[RANK].nunique()
        self.fit.add(frame)
        if data.cluster is not None:
            self.clusters |= set(labelled(frame[data.cluster])[1])


def _buckets(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Sorted rows cut between members, as soon as there are so many."""
    kept, count = list[pa.Table](), 0
    for table in tables:
        kept.append(table)
        count += table.num_rows
        while count >= rows:
            whole = pa.concat_tables(kept)
            rank = whole[RANK].to_numpy()
            ends = np.flatnonzero(np.diff(rank)) + 1
            cut = ends[np.searchsorted(ends, rows)] if len(ends) and ends[-1] >= rows else None
            kept, count = [whole], whole.num_rows
            if cut is None:  # its last member goes on
                break
            yield whole.slice(0, cut)
            kept, count = [whole.slice(cut)], whole.num_rows - int(cut)
    if count:
        yield pa.concat_tables(kept)


@dataclass
class _Writer:
    """Checks, codes and writes the staged buckets."""

    folder: Path
    config: Config
    staged: _Staged

    def write(self, tick: Tick) -> None:
        config, staged = self.config, self.staged
        self.schema: StateSchema = staged.fit.schema()
        source = config.data.path
        problems = fit_problems(pd.Index(self.schema.names), config, self.schema, staged.members)
        if problems:
            raise InputError(f"{source}:\n  " + "\n  ".join(finding.text(str) for finding in problems))
        self.buckets, linked, done = list[Bucket](), 0, 0
        clusters = sorted(staged.clusters)
        for frame in staged.frames():
            rows, _ = checked_rows(frame, config, schema=self.schema, source=source, calendar=staged.calendar)
            rows = _as_sorted(rows)
            linked += int(links_of(rows)[0].sum())
            staged.weights.add(rows.weight)
            if config.data.cluster is not None:
                codes, labels = labelled(frame[config.data.cluster])
                rows = replace(rows, cluster=np.searchsorted(clusters, labels)[codes[rows.position]])
            rank = frame[RANK].to_numpy()[rows.position]
            self._write(rows, rank, frame[config.data.member].iloc[rows.position])
            done += len(rank)
            tick("code", done, staged.rows)
        if not linked:
            raise InputError(
                f"{source}: no member has two consecutive periods. Check the member and period columns, or declare a "
                "`duration`"
            )

    def _write(self, rows: Rows, rank: Ints, ids: pd.Series) -> None:
        """Write the next bucket: rank[N] and ids[N] are of each row's member."""
        first = np.flatnonzero(np.append(True, np.diff(rank) != 0))
        counts = np.diff(np.append(first, len(rank)))
        each: dict[str, NDArray[Any]] = {}
        own: dict[str, Any] = {"rank": rank[first], "rows": _smallest(counts)}
        for name, values in self._columns(rows).items():
            alike = name != "period" and bool((values == np.repeat(values[first], counts)).all())
            (own if alike else each)[name] = values[first] if alike else values
        own["id"] = pa.array(ids.iloc[first], from_pandas=True)
        tables = {"rows": pa.table(each), "members": pa.table(own)}
        sha256 = {what: self._file(what, table) for what, table in tables.items()}
        self.buckets.append(Bucket(len(rank), len(first), sha256))

    def _columns(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """What is stored of every row, in the smallest types; what the schema says without it is left out."""
        data, schema = self.config.data, self.schema
        found = {"period": _smallest(rows.period), "action": _smallest(rows.action)}
        for f, column in enumerate(schema.columns):
            values = rows.state[:, f]
            whole = column.discrete or (column.kind == "count" and column.maximum < 2**24)
            found[STATE + column.name] = _smallest(values.astype(np.int64)) if whole else values
        optional: dict[str, tuple[bool, NDArray[Any]]] = {
            "segment": (len(schema.segments) > 1, _smallest(rows.segment)),
            "cluster": (data.cluster is not None, rows.cluster),
            "anchor_reward": (not schema.knows_anchor_reward, rows.anchor_reward),
            "active": (data.active is not None, rows.active),
            "weight": (data.weight is not None, rows.weight),
            "duration": (data.duration is not None, _smallest(rows.duration.astype(np.int64))),
            "leaves": (bool(data.exit), rows.leaves),
        }
        return found | {name: values for name, (there, values) in optional.items() if there}

    def _file(self, what: str, table: pa.Table) -> str:
        """Write one file of the next bucket; its SHA-256."""
        buffer = pa.BufferOutputStream()
        pyarrow.parquet.write_table(table, buffer, compression="zstd")
        content = buffer.getvalue().to_pybytes()
        runs.atomic_write(file_of(self.folder, what, len(self.buckets)), content)
        return hashlib.sha256(content).hexdigest()

    def manifest(self, source: dict[str, Any]) -> dict[str, Any]:
        """What the store is, as plain values."""
        found: dict[str, Any] = {
            "software": runs.SOFTWARE,
            "kind": "store",
            "format": FORMAT,
            "rows": sum(bucket.rows for bucket in self.buckets),
            "members": sum(bucket.members for bucket in self.buckets),
            "weight_mean": self.staged.weights.mean,
            "clusters": self.config.data.cluster is not None,
            "calendar": asdict(self.staged.calendar),
            "source": source,
            "study": study_of(self.config),
            "schema": self.schema.to_json(),
            "buckets": [asdict(bucket) for bucket in self.buckets],
        }
        return found | {"fingerprint": fingerprint_of(found)}


def _source(files: list[Path]) -> dict[str, Any]:
    """The raw files: names, sizes, and a fingerprint of their content."""
    listed = [{"name": file.name, "bytes": file.stat().st_size} for file in files]
    return {"files": listed, "fingerprint": runs.fingerprint(*files)}


def _smallest(values: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers in the smallest integer type that holds them."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    return values.astype(np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high)))


def _as_sorted(rows: Rows) -> Rows:
    """The rows by period, members in the order in which they come in their frame."""
    first = np.full(int(rows.member.max()) + 1, len(rows.member))
    np.minimum.at(first, rows.member, rows.position)
    return rows.take(np.lexsort((rows.period, first[rows.member])))
