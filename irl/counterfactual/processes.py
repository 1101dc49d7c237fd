"""Work shared between threads of a process, and between processes of a torch.distributed group."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def joined() -> Iterator[int]:
    """The number of this process; those that torchrun started form a group meanwhile, each with a GPU of its own where
    there are GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


def group() -> tuple[int, int]:
    """(number of this process, of all) in the group that torch.distributed was initialised with; (0, 1) without."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def add_up(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its sum over the processes, in one exchange; all of one dtype."""
    if group()[1] == 1 or not tensors:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> Iterator[Result]:
    """work(item) of every item, in order. On a CPU as many at a time as torch may use threads, each on one thread: the
    tensors of a batch that fits a cache are too small to be worth sharing."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(items) < 2:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
