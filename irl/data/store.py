"""A panel store: whole members in buckets, coded and checksummed, written once by :mod:`irl.data.prepare`.

    STORE/rows/00000.parquet     what differs from row to row: period, action, codes and numbers of the state
    STORE/members/00000.parquet  what does not: the member's identifier, how many rows it has, the other state columns
    STORE/provenance.json        written first: whose folder this is
    STORE/manifest.json          written last: counts, checksums, the fitted schema, and the study that it is for

Members come in a pseudo-random order, so that buckets one after the other are a random sample; their ``rank`` is where
their identifiers come among all. The rows of a member follow each other by period. Codes are stored in the smallest
integers that hold them. What follows from these (menus, next choices) is computed when a bucket is read, as it is for
raw files.

Checksums are taken of the bytes of a file as it is read, whenever it is: that costs no second pass, and a file that was
changed or cut short is not used. Identifiers are in the store, as they are in the raw files, and go nowhere from it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor

from irl import runs
from irl.config import Config, InputError, nearest
from irl.data.encode import Ints
from irl.data.fit import fit_problems
from irl.data.panel import Panel, owners, panel_from_rows, tensors_of
from irl.data.periods import Calendar
from irl.data.rows import Rows
from irl.data.schema import StateSchema
from irl.data.scratch import Scratch

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state."
"""What stands before the names of state columns in the files."""


@dataclass(frozen=True)
class Bucket:
    """Some members: numbers of rows and members, and the SHA-256 of its two files ("rows", "members")."""

    rows: int
    members: int
    sha256: dict[str, str]


@dataclass(frozen=True)
class Store:
    """A store that is complete and fits what asked for it.

    ``fingerprint`` is of all that it holds, ``source`` of the raw files; ``weight_mean`` is the mean of the declared
    weights over all rows (1 without); ``clusters`` says whether members' clusters are stored.
    """

    folder: Path
    schema: StateSchema
    calendar: Calendar
    buckets: tuple[Bucket, ...]
    weight_mean: float
    clusters: bool
    fingerprint: str
    source: str
    study: dict[str, Any]

    @property
    def n_rows(self) -> int:
        return sum(bucket.rows for bucket in self.buckets)

    @property
    def n_members(self) -> int:
        return sum(bucket.members for bucket in self.buckets)

    def parts(self, buckets: Sequence[int] | None = None) -> Iterator[tuple[Rows, Ints]]:
        """The rows of each bucket (by default of all), members numbered from 0 in each, and the members' ranks [M].

        Raises
        ------
        InputError
            If a file is not what was written.
        """
        for k in range(len(self.buckets)) if buckets is None else buckets:
            rows, members = self.table(k, "rows"), self.table(k, "members")
            yield self._rows(rows, members), _array(members, "rank").astype(np.int64)

    def whole(self) -> Rows:
        """The rows of all buckets, members in the order of their identifiers."""
        parts = list(self.parts())
        ranks = np.concatenate([rank for _, rank in parts])
        number = np.empty(len(ranks), dtype=np.int64)
        number[np.argsort(ranks)] = np.arange(len(ranks))
        counted, members = [], 0
        for rows, rank in parts:
            member = number[members + rows.member]
            counted.append(replace(rows, member=member, cluster=rows.cluster if self.clusters else member))
            members += len(rank)
        found = joined(counted)
        return found.take(np.argsort(found.member, kind="stable"))

    def panel(self) -> Panel:
        """All rows in memory, as the raw files give them."""
        found = panel_from_rows(self.whole(), self.schema, leaves=self.leaves, mean_weight=self.weight_mean)
        return replace(found, fingerprint=self.fingerprint)

    def mapped(self, buckets: Sequence[int] | None = None) -> Panel:
        """The rows of these buckets (by default of all), in their order, in files: memory is that of one bucket. Of
        some buckets, it is a part of the panel of all."""
        picked = range(len(self.buckets)) if buckets is None else buckets
        before = [0, *itertools.accumulate(bucket.members for bucket in self.buckets)]
        n, scratch = sum(self.buckets[k].rows for k in picked), Scratch()
        found: dict[str, Tensor] = {}
        rows_before, members_before, gaps = 0, 0, 0
        for k, (rows, rank) in zip(picked, self.parts(picked), strict=True):
            part = panel_from_rows(rows, self.schema, leaves=self.leaves, mean_weight=self.weight_mean)
            own = tensors_of(part)
            if buckets is not None:
                own["origin"] = own["member"] + before[k]
            own["member"] = own["member"] + members_before
            own["cluster"] = torch.from_numpy(rows.cluster) if self.clusters else own["member"]
            for name in ("next_row", "next_choice"):
                own[name] = torch.where(own[name] >= 0, own[name] + rows_before, -1)
            for name, values in own.items():
                if name not in found:
                    found[name] = scratch.room(n, *values.shape[1:], dtype=values.dtype)
                found[name][rows_before : rows_before + len(values)] = values
            rows_before, members_before, gaps = rows_before + part.n_rows, members_before + len(rank), gaps + part.gaps
        tensors: dict[str, Any] = dict(found)
        return Panel(schema=self.schema, **tensors, gaps=gaps, scratch=scratch, fingerprint=self.fingerprint)

    def share(self, process: int, number: int) -> Panel | None:
        """The part of one of several processes, by whole buckets, about as many rows for each; None if buckets are
        fewer than processes, or clusters, which have to stay together, are not members."""
        if self.clusters or len(self.buckets) < number:
            return None
        owner = owners([bucket.rows for bucket in self.buckets], number)
        return self.mapped([k for k, mine in enumerate(owner) if mine == process])

    def frame(self, columns: Iterable[str] | None = None) -> pd.DataFrame:
        """Its rows as a frame: all that it holds, or these columns. Labels for codes, and dates by the calendar's unit.

        Raises
        ------
        InputError
            If a column is not in the store.
        """
        data = self.study["data"]
        names = list(dict.fromkeys(columns)) if columns is not None else self.columns
        lost = [
            f"there is no column {name!r}{nearest(name, self.columns)}" for name in names if name not in self.columns
        ]
        if lost:
            raise InputError(f"{self.folder}: the store keeps what its study reads:\n  " + "\n  ".join(lost))
        frames = []
        for k, (rows, _) in enumerate(self.parts()):
            frame = self.schema.decode(torch.from_numpy(rows.state))
            frame[data["member"]] = self.table(k, "members")["id"].to_pandas().to_numpy()[rows.member]
            frame[data["period"]] = self.calendar.shown(rows.period)
            frame[data["action"]] = np.array(self.schema.actions, dtype=object)[rows.action]
            for name, values in self._others(rows).items():
                frame[name] = values
            frames.append(frame[names])
        return pd.concat(frames, ignore_index=True)

    @property
    def columns(self) -> list[str]:
        """The columns that :meth:`frame` has, by the names of the raw files."""
        data = self.study["data"]
        named = [data[name] for name in ("member", "period", "action", "weight", "cluster", "active", "duration")]
        named += [*self.schema.names, *self.schema.segment_columns]
        named += [] if self.schema.knows_anchor_reward else [self.schema.anchor_reward]
        return [name for name in dict.fromkeys(named) if name is not None]

    @property
    def leaves(self) -> bool:
        """Whether exits are declared."""
        return bool(self.study["data"]["exit"])

    def _others(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Columns beside the state by the names of the raw files."""
        data, schema = self.study["data"], self.schema
        kept = {"weight": rows.weight, "cluster": rows.cluster, "active": rows.active, "duration": rows.duration}
        found: dict[str, NDArray[Any]] = {data[k]: values for k, values in kept.items() if data[k] is not None}
        if not schema.knows_anchor_reward:
            found[str(schema.anchor_reward)] = rows.anchor_reward
        labels = [name.split(" | ") for name in schema.segments]
        for i, name in enumerate(schema.segment_columns):
            if name not in schema.names:
                found[name] = np.array([each[i] for each in labels], dtype=object)[rows.segment]
        return found

    def table(self, bucket: int, what: str) -> pa.Table:
        """One file of a bucket, "rows" or "members"; InputError if it is not what was written."""
        path = file_of(self.folder, what, bucket)
        again = "prepare the store again (scripts/prepare.py --overwrite)"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); {again}") from None
        if hashlib.sha256(content).hexdigest() != self.buckets[bucket].sha256[what]:
            raise InputError(f"{path}: was changed or cut short since it was written (checksum); {again}")
        return pyarrow.parquet.read_table(pa.BufferReader(content))

    def _rows(self, rows: pa.Table, members: pa.Table) -> Rows:
        counts = _array(members, "rows").astype(np.int64)
        n, schema = rows.num_rows, self.schema

        def column(name: str) -> NDArray[Any] | None:
            if name in rows.column_names:
                return _array(rows, name)
            return np.repeat(_array(members, name), counts) if name in members.column_names else None

        def optional(name: str, otherwise: float, kind: type) -> NDArray[Any]:
            values = column(name)
            return np.full(n, otherwise, dtype=kind) if values is None else values.astype(kind)

        state = np.empty((n, len(schema.columns)), dtype=np.float32)
        for f, name in enumerate(schema.names):
            state[:, f] = column(STATE + name)
        tensor, member = torch.from_numpy(state), np.repeat(np.arange(len(counts)), counts)
        known = schema.known_reward(tensor).double().numpy() if schema.knows_anchor_reward else None
        return Rows(
            position=np.arange(n),
            member=member,
            period=optional("period", 0, np.int64),
            action=optional("action", 0, np.int64),
            state=state,
            menu=schema.menu(tensor).numpy(),
            terminal=schema.is_terminal(tensor).numpy(),
            segment=optional("segment", 0, np.int64),
            cluster=optional("cluster", 0, np.int64) if self.clusters else member,
            anchor_reward=optional("anchor_reward", 0.0, np.float64) if known is None else known,
            active=optional("active", True, np.bool_),
            weight=optional("weight", 1.0, np.float64),
            duration=optional("duration", 1.0, np.float64),
            leaves=optional("leaves", False, np.bool_),
        )


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other."""
    return Rows(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in Rows.__dataclass_fields__})


def file_of(folder: Path, what: str, bucket: int) -> Path:
    """Where a bucket's "rows" or "members" are."""
    return folder / what / f"{bucket:05}.parquet"


def is_store(path: str | Path) -> bool:
    """Whether this folder is a store, or was to become one."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return False
    for name in (MANIFEST, runs.PROVENANCE):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and (content.get("software"), content.get("kind")) == (runs.SOFTWARE, "store"):
            return True
    return False


def open_store(path: str | Path, config: Config | None = None) -> Store:
    """The store in a folder, which has to be for the study ``config``, if one is given.

    What may differ is what the store does not depend on: the numbers of the anchor's reward, and all that is not about
    the data.

    Raises
    ------
    InputError
        If it is not finished, of another format, damaged, or made for another study.
    """
    folder = Path(path).expanduser()
    again = "prepare it again (scripts/prepare.py --overwrite)"
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{path}: a store that was not finished (no {MANIFEST}); {again}")
    manifest = runs.read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{path}: a store of format {manifest.get('format')!r}, and this version reads {FORMAT}; {again}"
        )
    try:
        store = Store(
            folder=folder,
            schema=StateSchema.from_json(manifest["schema"]),
            calendar=Calendar(**manifest["calendar"]),
            buckets=tuple(Bucket(**bucket) for bucket in manifest["buckets"]),
            weight_mean=manifest["weight_mean"],
            clusters=manifest["clusters"],
            fingerprint=manifest["fingerprint"],
            source=manifest["source"]["fingerprint"],
            study=manifest["study"],
        )
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder / MANIFEST}: is not as it was written; {again}") from None
    if fingerprint_of(manifest) != store.fingerprint:
        raise InputError(f"{folder / MANIFEST}: was changed since it was written; {again}")
    return store if config is None else _for_study(store, config, again)


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """Of everything that a manifest says, which includes the checksums of the data."""
    return runs.fingerprint(json.dumps({k: v for k, v in manifest.items() if k != "fingerprint"}, sort_keys=True))


def study_of(config: Config) -> dict[str, Any]:
    """What of a study a store depends on, as plain values."""
    plain = config.model_dump(mode="json", include={"data", "anchor", "attention"})
    plain["data"].pop("path")
    plain["data"].pop("memory_rows")
    plain["data"].pop("min_cell")
    plain["data"]["columns"] = list(config.data.state)  # equal mappings may have another order
    if plain["attention"] is not None:
        plain["attention"]["order"] = list(config.defaults)
    if not isinstance(config.anchor.reward, str):
        plain["anchor"].pop("reward")
    return plain


def _for_study(store: Store, config: Config, again: str) -> Store:
    study = study_of(config)
    changed = [f"{s}.{k}" for s in study for k in _differing(store.study.get(s), study[s])]
    if changed:
        raise InputError(
            f"{store.folder}: this store was made for a study that differs in {', '.join(changed)}; {again}, or give "
            "the study as it was"
        )
    schema = store.schema
    if not isinstance(config.anchor.reward, str):
        schema = replace(schema, anchor_reward=config.anchor.reward)
    problems = fit_problems(pd.Index(schema.names), config, schema, store.n_members)
    if problems:
        raise InputError(f"{store.folder}:\n  " + "\n  ".join(finding.text(str) for finding in problems))
    return replace(store, schema=schema)


def _differing(before: Any, now: Any) -> list[str]:
    """Names of the options that are not the same."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else ["(all)"]
    return sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))


def _array(table: pa.Table, name: str) -> NDArray[Any]:
    found: NDArray[Any] = table[name].to_numpy()
    return found
