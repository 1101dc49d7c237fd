"""A pretended device: tensors that say they are elsewhere and are not, so that code for a GPU is tested without one.

Operations run on the CPU, and fail as they would on a GPU where tensors of both sides are mixed, where a generator of
one side fills a tensor of the other, or where numbers are taken as numpy's without being brought back. Nothing of a
GPU's speed, rounding or memory is pretended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

DEVICE = torch.device("meta")
"""The kind that torch knows everywhere without starting anything; real tensors of this kind hold no numbers."""
aten = torch.ops.aten
MIXED = {aten._to_copy.default, aten.copy_.default}
"""Operations that go from one side to the other."""
INDEXED = {
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip
"""Operations of a tensor there that take places from either side."""

RESHAPED = {aten.squeeze_, aten.unsqueeze_, aten.t_, aten.transpose_, aten.resize_, aten.as_strided_}
"""Operations that change a tensor's own shape."""


class There(torch.Tensor):
    """A tensor on the pretended device; ``held`` is where its numbers are."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def item(self) -> Any:
        return self.held.item()

    def new_tensor(self, data: Any, **options: Any) -> torch.Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": DEVICE} | options)

    def __float__(self) -> float:
        return float(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    def __index__(self) -> int:
        return self.held.__index__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)  # checkpoints are read on the CPU, then brought back

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Made(TorchFunctionMode):
    """Tensors made of Python's numbers, which torch would make without numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return func(args[0], _places(args[1]), *args[2:], **kwargs)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


def _places(key: Any) -> Any:
    """A key whose lists are tensors."""
    if isinstance(key, tuple):
        return tuple(_places(part) for part in key)
    return torch.tensor(key, dtype=None if key else torch.long) if isinstance(key, list) else key


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the numbers, wherever they are said to be."""
    flat, spec = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, There)]
    here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, There)]
    if there and func not in MIXED:
        if func in INDEXED and isinstance(flat[0], There):
            here = [x for x in here if x.dtype.is_floating_point]
        if [x for x in here if x.ndim]:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got some on both")
    if [x for x in flat if isinstance(x, torch.Generator)] and (there or kwargs.get("device") == DEVICE):
        raise RuntimeError(f"Expected a '{DEVICE.type}' device type for generator but found 'cpu'")
    device = kwargs.get("device")
    wrap = bool(there) if device is None else torch.device(device).type == DEVICE.type
    if func is aten.copy_.default:
        wrap = isinstance(flat[0], There)
    own = {id(x.held): x for x in there}
    plain_args, plain_kwargs = tree_unflatten([x.held if isinstance(x, There) else x for x in flat], spec)
    if device is not None and torch.device(device).type == DEVICE.type:
        plain_kwargs = plain_kwargs | {"device": torch.device("cpu")}
    found = func(*plain_args, **plain_kwargs)
    if isinstance(flat[0], There) and func.overloadpacket in RESHAPED:
        with no_dispatch():
            func(*args, **kwargs)  # the shape that the tensor is said to have
    if not wrap:
        return found
    outs, spec = tree_flatten(found)
    assert not [x for x in outs if isinstance(x, torch.Tensor) and x.device == DEVICE], f"{func} lost its numbers"
    return tree_unflatten([_there(x, own) if isinstance(x, torch.Tensor) else x for x in outs], spec)


def _there(x: torch.Tensor, own: dict[int, There]) -> There:
    return own[id(x)] if id(x) in own else There(x)


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


@contextmanager
def pretended(monkeypatch: Any) -> Iterator[None]:
    """``--device cuda`` means the pretended device."""
    from irl import command
    from irl.estimation import training

    usable = command.usable_device
    monkeypatch.setattr(command, "usable_device", lambda name: DEVICE if name == "cuda" else usable(name))
    place = training._place

    def placed(device: torch.device) -> dict[str, Any]:
        if device != DEVICE:
            return place(device)
        return {"strategy": SingleDeviceStrategy(DEVICE, accelerator=_Accelerator())}

    monkeypatch.setattr(training, "_place", placed)
    with Pretending(), Made():
        yield
