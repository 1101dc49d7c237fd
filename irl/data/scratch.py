"""Tensors in files instead of memory, for panels that do not fit there: mapped, so that they are used like any other.

The files have no name and vanish with the process, however it ends. They lie where temporary files do: ``TMPDIR`` says
where, and should not be a file system in memory. Pages that were used stay mapped until they are handed back, which a
thread does whenever more than ``MOST`` bytes of files are resident (Linux; elsewhere the system does it when it needs
the memory): they then still are in the system's cache, which gives them up for whatever else needs memory.
"""

from __future__ import annotations

import math
import mmap
import tempfile
import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MOST = 384 * 2**20
"""Bytes of mapped files beyond those at the start from which pages are handed back."""
EVERY = 0.05
"""Seconds between two looks at how much is resident."""


class Scratch:
    """Room for tensors in unnamed files."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = folder
        self._maps = list[mmap.mmap]()
        self._watch = threading.Thread(target=self._hand_back, daemon=True)
        self._before = _resident()

    def room(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros of this shape on the CPU, in a file."""
        size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        if not size:
            return torch.zeros(*shape, dtype=dtype)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(size)
            mapped = mmap.mmap(file.fileno(), size)
        self._maps.append(mapped)
        if self._before is not None and not self._watch.is_alive():
            self._watch.start()
        return torch.from_numpy(np.frombuffer(mapped, dtype=np.uint8)).view(dtype).view(*shape)

    def hand_back(self) -> None:
        """Let go of all pages; they are read again from the files when they are needed."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def _hand_back(self) -> None:
        pause = threading.Event()
        while not pause.wait(EVERY):
            now = _resident()
            if now is not None and self._before is not None and now - self._before > MOST:
                self.hand_back()


def _resident() -> int | None:
    """Bytes of mapped files in memory; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[2]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return None
