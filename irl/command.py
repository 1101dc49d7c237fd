"""What every script does around its work: errors become messages, the device is found, progress is shown, freed memory
is kept."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from irl.sections import InputError

FAILING = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there or have the quota raised",
    errno.EFBIG: "choose another file system",
    errno.EROFS: "choose another place, or have it made writable",
    errno.EACCES: "choose another place, or have it made writable",
    errno.EPERM: "choose another place, or have it made writable",
    errno.EIO: "see to the disk",
}
"""Errors of disks, not of this software, and what helps."""
KEPT_MEMORY = {-3: 2**28, -1: 2**29, -2: 2**26}
"""glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD (malloc.h), bytes: what is larger than the first is given
back at once, and of what lies free at the end not more than the second is kept. (With 2 GB for both, an epoch of the P
step over 50,000,000 rows took 2.6 GB instead of 1.6.)"""
EVERY = 60.0
"""Seconds between two lines about a step, where there is no terminal."""


class Tick(Protocol):
    def __call__(self, step: str, done: int, of: int, note: str = "") -> None:
        """So much of a step is done, of so much."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Around a script's work: a user's error, a divergence, a full or failing disk end it with a message and code 2,
    Ctrl-C with 130; no traceback. What memory is freed is kept for what follows."""
    keep_memory()
    try:
        yield
    except InputError as error:
        said = str(error)
    except FloatingPointError as error:
        said = f"the training diverged: {error}. The steps before are kept; with other options, give --overwrite"
    except OSError as error:
        if error.errno not in FAILING:
            raise
        place = error.filename2 or error.filename or "the disk"
        said = (
            f"{place}: {error.strerror}; {FAILING[error.errno]}, and run it again (--resume, where there is, goes on)"
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    else:
        return
    print(f"error: {said}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def progress(console: Console) -> Iterator[Tick]:
    """Gives ``tick(step, done, of, note)``. At a terminal every step has a bar; elsewhere (a log, a batch job) a line
    when the next step begins or the work ends, and one a minute."""
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    tasks: dict[str, tuple[TaskID, float]] = {}
    unsaid, current, said = "", "", time.monotonic()

    def say() -> None:
        nonlocal unsaid, said
        if unsaid and not console.is_terminal:
            console.print(unsaid, markup=False, highlight=False, soft_wrap=True)
        unsaid, said = "", time.monotonic()

    def tick(step: str, done: int, of: int, note: str = "") -> None:
        nonlocal unsaid, current
        if step != current:
            say()
        current, now = step, time.monotonic()
        if step not in tasks:
            tasks[step] = bars.add_task(step, total=of, note=note), now
        task, began = tasks[step]
        bars.update(task, completed=done, total=of, note=note)
        unsaid = f"{step}: {done:,} of {of:,}, {now - began:.0f} s{', ' * bool(note)}{note}"
        if now - said > EVERY:
            say()

    with bars:
        try:
            yield tick
        finally:
            say()


def of_training(tick: Tick) -> Callable[[str, int, int, float], None]:
    """What training reports, its held-out loss as a note."""
    return lambda step, epoch, of, loss: tick(step, epoch, of, "" if math.isnan(loss) else f"held-out loss {loss:.4f}")


def usable_device(name: str) -> torch.device:
    """The device of this name, or with "auto" a GPU if there is one; InputError if it cannot be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=name).sum().item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--device {name}: not usable here ({why}); try auto or cpu") from None


def keep_memory() -> None:
    """Have glibc keep what is freed instead of giving it back: large tensors come and go, and pages that are asked for
    anew have to be cleared each time (a fifth of the seconds of a scenario). Elsewhere, and where the environment says
    something of ``MALLOC_``, nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        for option, value in KEPT_MEMORY.items():
            mallopt(option, value)
