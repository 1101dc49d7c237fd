"""A run folder: what is written there is either all there or not there at all.

A folder becomes a run when ``start_run`` writes ``provenance.json`` into it, and is complete when ``metrics.json``,
written last, is there. Files are replaced by renaming a finished copy; one process at a time holds ``.lock``;
``--overwrite`` empties only what ``provenance.json`` shows to be this software's own.

Limits: POSIX only (``flock``, renaming over an existing name); on network file systems the lock is as good as theirs.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from irl.config import InputError

Kind = Literal["run", "scenario", "store", "export"]
SOFTWARE = "anchor-irl"
PROVENANCE = "provenance.json"
LAST = "metrics.json"
LOCK = ".lock"


@dataclass(frozen=True)
class Provenance:
    """What produced a folder: enough to explain a difference between two runs."""

    software: str
    kind: Kind
    versions: dict[str, str]
    platform: str
    device: str
    git_commit: str | None  # of the package's own checkout; ends in "+changes" if files differ from it
    time: str


@contextmanager
def start_run(
    path: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    kind: Kind = "run",
    about: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """Hold the folder ``path`` for one run: made, locked, marked with its provenance, released at the end.

    A folder that holds anything is refused, unless ``overwrite`` (a folder of this kind is emptied first) or
    ``resume`` (an unfinished one is kept as it is; a folder not yet begun is begun). ``about`` (seed, fingerprints) is
    stored with the provenance, and has to be the same when it is resumed. What was being written when a process died is
    removed; so is a folder that an InputError ends before any step is stored. The caller writes ``metrics.json`` last,
    which makes the run complete.

    Raises
    ------
    InputError
        If the folder cannot be made, is in use, holds something that may not be replaced, or cannot be resumed.
    """
    folder = Path(path)
    if overwrite and resume:
        raise InputError("--overwrite and --resume contradict each other: give one")
    made = make_folder(folder)
    _check(folder, overwrite=overwrite, resume=resume, kind=kind)  # before .lock is put into a stranger's folder
    with locked(folder):
        _check(folder, overwrite=overwrite, resume=resume, kind=kind)
        _remove_unfinished((*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")))
        described = asdict(provenance(kind)) | {"about": dict(about or {})}
        if resume and not _is_unused(folder):
            described = _resumed(folder, described)
        elif overwrite:
            _empty(folder)
        write_json(folder / PROVENANCE, described)
        try:
            yield folder
        except InputError:
            if made and not any(folder.glob("steps/*.json")):
                shutil.rmtree(folder)  # with other options it would not be the same run
            raise


def is_complete(path: str | Path) -> bool:
    """Whether the run in this folder was finished."""
    return (Path(path) / LAST).is_file()


def complete_run(path: str | Path) -> Path:
    """The folder of a finished run; InputError with a remedy if it is none."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; train one with scripts/train.py --run {folder}")
    if not _is_ours(folder, "run"):
        raise InputError(f"{folder}: not a run (no {PROVENANCE} of {SOFTWARE}); give the folder named at training")
    if not is_complete(folder):
        raise InputError(f"{folder}: this run is not finished; finish it with scripts/train.py --run {folder} --resume")
    return folder


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold ``folder/.lock``; InputError if another process does. The file stays: only the hold on it counts."""
    with open(Path(folder) / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(f"{folder}: in use by {holder}; wait until it ends or choose another folder") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write a file that, under its name, is only ever complete: the old content or all of the new (text as UTF-8)."""
    path = Path(path)
    unfinished = _unfinished(path)
    try:
        with open(unfinished, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk does not say for which file
        raise
    _sync(path.parent)


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill the folder that is yielded; it takes the name ``path`` when the block ends without an error.

    With ``replace`` a folder already there is moved aside before and removed after; for the moment between two
    renames the name is free. Without it, a folder that holds anything is an InputError. What a process that died left
    of the same folder is removed: one process at a time writes it.
    """
    path = Path(path)
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: already exists; choose another name or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    unfinished, old = _unfinished(path), _unfinished(path)
    unfinished.mkdir()
    try:
        yield unfinished
        for each in (*unfinished.rglob("*"), unfinished):
            _sync(each)
        if replace and path.exists():
            os.rename(path, old)
        os.rename(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise
    _sync(path.parent)
    _remove(old)


def write_json(path: str | Path, content: Any) -> None:
    """Write plain values as JSON, atomically; NaN and infinity are refused, since JSON has none."""
    atomic_write(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; InputError if there is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); was it edited or cut short?") from None


def fingerprint(*items: str | Path | Tensor) -> str:
    """SHA-256 of the content of files (``Path``), tensors (type, shape, values) and strings, in this order.

    A file's name and place do not matter, nor does a tensor's device.
    """
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item, Tensor):
            digest.update(f"tensor {item.dtype} {tuple(item.shape)}|".encode())
            digest.update(item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(item, str):
            digest.update(f"text {len(item)}|{item}".encode())
        else:
            try:
                with open(item, "rb") as file:
                    digest.update(b"file|" + hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise InputError(f"{item}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def provenance(kind: Kind = "run") -> Provenance:
    """This software and the machine it runs on, now."""
    versions = {"python": platform.python_version()}
    for name in (SOFTWARE, "torch", "lightning", "numpy", "pandas"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return Provenance(
        software=SOFTWARE,
        kind=kind,
        versions=versions,
        platform=platform.platform(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores",
        git_commit=_git_commit(Path(__file__).resolve().parents[1]),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def make_folder(folder: Path) -> bool:
    """Make a folder to write to; whether there was none before. InputError if that cannot be done."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: a file is in the way; choose another run folder") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose another run folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: may not be written to; choose another run folder")
    with suppress(OSError):  # that of a folder made long ago need not be readable
        _sync(folder.resolve().parent)
    return made


def _check(folder: Path, *, overwrite: bool, resume: bool, kind: Kind) -> None:
    """InputError unless the folder is unused, or may be emptied or continued as asked."""
    if _is_unused(folder):
        return
    if not _is_ours(folder, kind):
        raise InputError(
            f"{folder}: holds files that are not {'an' if kind == 'export' else 'a'} {kind} of {SOFTWARE}, and nothing "
            "replaces those; choose another folder or empty it yourself"
        )
    if overwrite:
        return
    replace = "--overwrite to replace it, or choose another folder"
    if kind == "export":
        raise InputError(f"{folder}: an export is already here; give {replace}")
    if is_complete(folder):
        raise InputError(f"{folder}: a finished {kind} is already here; give {replace}")
    if not resume:
        raise InputError(f"{folder}: an unfinished {kind} is already here; give --resume to continue it, {replace}")


def _resumed(folder: Path, described: dict[str, Any]) -> dict[str, Any]:
    """The provenance of a run begun earlier, with this start added; InputError if it is about something else."""
    before = read_json(folder / PROVENANCE)
    then, now = before.get("about", {}), json.loads(json.dumps(described["about"]))
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if changed:
        raise InputError(
            f"{folder}: cannot be resumed, since what it was started with has changed ({', '.join(changed)}); "
            "give --overwrite to start again"
        )
    return {**before, "resumed": [*before.get("resumed", []), {k: v for k, v in described.items() if k != "about"}]}


def _is_ours(folder: Path, kind: Kind) -> bool:
    with suppress(InputError):
        content = read_json(folder / PROVENANCE)
        return isinstance(content, dict) and content.get("software") == SOFTWARE and content.get("kind") == kind
    return False


def _is_unused(folder: Path) -> bool:
    """Nothing there but what a start that was cut short leaves: the lock and unfinished files."""
    return all(entry.name == LOCK or (entry.name[0] == "." and entry.suffix == ".tmp") for entry in folder.iterdir())


def _remove_unfinished(entries: Iterable[Path]) -> None:
    """Remove those that a process which died was writing; nobody else may be writing them now."""
    for entry in entries:
        if re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", entry.name):
            _remove(entry)


def _empty(folder: Path) -> None:
    """Remove all but the lock: what makes it complete first, what makes it ours last, in case this is cut short."""
    (folder / LAST).unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.name not in (LOCK, PROVENANCE):
            _remove(entry)
    (folder / PROVENANCE).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _git_commit(root: Path) -> str | None:
    """The commit of the checkout whose top is ``root``; None for an installed copy or without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "irl") else "")
    except (OSError, subprocess.SubprocessError):
        return None
