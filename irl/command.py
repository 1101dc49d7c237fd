"""What every script does around its work: errors become messages, the device is found, freed memory is kept."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
