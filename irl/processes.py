"""Work shared between threads of a process, and between processes of a torch.distributed group.

Estimation deals the members out: every process holds some of them whole, and what is estimated depends on rows only
through sums over all of them, which the processes exchange (``summed`` and what is made of it). With one process all of
this is the identity. Sums come out as the same bits in every process; where something is computed from them and decided
on, it is computed in each and taken from the first (``agreed``).

Every process has to reach the same exchanges in the same order: whether one is reached may depend on nothing that is
not the same in all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from irl.sections import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 2**20
"""Rows of which a mean takes up the values in float64 at once."""
SEEDS_APART = 10_000
"""Between the seeds of processes that draw different random numbers."""
FAILED = "irl_failed"
"""Where a process that fails says so before it ends."""


@contextmanager
def joined() -> Iterator[int]:
    """The number of this process; those that torchrun started form a group meanwhile, each with a GPU of its own where
    there are GPUs. Only the first prints; of an error that several meet, one says what it is and the others end with
    code 2.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, number = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=number)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if rank else nullcontext():
            yield rank
    except Exception:  # an exchange fails, too, where another process has ended
        if not _first_to_fail(store):
            raise SystemExit(2) from None
        raise
    distributed.destroy_process_group()  # not after an error: it could wait for others


def _first_to_fail(store: Any) -> bool:
    try:
        return bool(store.add(FAILED, 1) == 1)
    except RuntimeError:  # the process that kept the store has ended
        return False


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


def summed(values: Tensor) -> Tensor:
    """Sum over the processes, entry by entry. Give float64 (or integers) where many rows have been added up."""
    return _reduced(values, distributed.ReduceOp.SUM)


def highest(values: Tensor) -> Tensor:
    """The largest over the processes, entry by entry."""
    return _reduced(values, distributed.ReduceOp.MAX)


def total(value: Tensor | float) -> float:
    """A number summed over the processes, in float64."""
    return float(summed(torch.as_tensor(value, dtype=torch.float64)))


def mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the rows [N, ...] of all processes, float64; by weight[N] if given. NaN without rows."""
    shape = values.shape[1:]
    both = values.new_zeros(math.prod(shape) + 1, dtype=torch.float64)
    for i, part in enumerate(values.split(AT_ONCE)):
        own = part.new_ones(len(part)) if weight is None else weight[i * AT_ONCE : i * AT_ONCE + len(part)]
        own = own.double()
        both += torch.cat([own @ part.double().reshape(len(part), math.prod(shape)), own.sum().view(1)])
    both = summed(both)
    return (both[:-1] / both[-1]).view(shape)


def spread(values: Tensor, *, correction: int) -> Tensor:
    """Standard deviation over the rows [N, ...] of all processes, float64."""
    middle = mean(values)
    apart = torch.zeros_like(middle)
    for part in values.split(AT_ONCE):
        apart += (part.double() - middle).square().sum(0)
    return (summed(apart) / (total(len(values)) - correction)).sqrt()


def anywhere(flag: Tensor | bool) -> bool:
    """Whether it is true in any process."""
    return total(float(flag)) > 0


def gathered(values: Tensor) -> Tensor:
    """values[n, ...] of every process, one after the other, in each."""
    number = group()[1]
    if number == 1:
        return values
    counts = torch.zeros(number, dtype=torch.long, device=values.device)
    counts[group()[0]] = len(values)
    lengths = summed(counts).tolist()
    padded = values.new_zeros(max(lengths), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def agreed(values: Tensor) -> Tensor:
    """What the first process has: for what all compute alike, which on unlike machines may differ in the last bits."""
    if group()[1] == 1:
        return values
    values = values.contiguous().clone()
    distributed.broadcast(values, src=0)
    return values


def from_first(work: Callable[[], Result]) -> Result:
    """work() as done by the first process alone, with its errors, in all."""
    process, number = group()
    if number == 1:
        return work()
    found: list[Result | InputError | None] = [None]
    if process == 0:
        try:
            found[0] = work()
        except InputError as error:
            found[0] = error
    distributed.broadcast_object_list(found, src=0)
    if isinstance(found[0], InputError):
        raise found[0]
    return found[0]  # type: ignore[return-value] # None may be a result


def own_part(most: int, rows: int) -> int:
    """How many of its ``rows`` this process gives to a sample of ``most`` rows of all: in proportion, so that every row
    has the same chance."""
    process, _ = group()
    until = gathered(torch.tensor([rows])).cumsum(0).tolist()
    if until[-1] <= most:
        return rows
    first = until[process - 1] if process else 0
    return int(most * until[process] // until[-1] - most * first // until[-1])


def own_seed(seed: int) -> int:
    """A seed of this process, for random numbers that should differ between them."""
    return seed + SEEDS_APART * group()[0]


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


def _reduced(values: Tensor, how: distributed.ReduceOp.RedOpType) -> Tensor:
    if group()[1] == 1:
        return values
    values = values.contiguous().clone()
    distributed.all_reduce(values, how)
    return values
