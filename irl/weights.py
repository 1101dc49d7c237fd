"""Networks in a folder: ``weights.safetensors`` and what is said of them in ``model.json``; nothing is pickled.

Both carry fingerprints, so that a folder that was cut short or edited is refused. They tell damage, not malice: whoever
means to deceive can make new ones. Loading runs no code of the folder's in any case.

A covariance may be kept by its largest factors, in half precision: of 944 parameters .7 MB for .999 of its trace.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from irl import runs
from irl.config import InputError

FORMAT = 4
"""Version of the folder; a folder of another version is refused."""
FACTOR = ".factor"
"""How the names of covariances end that are kept by their factors."""
ABOUT = "model.json"


def write(
    folder: str | Path, networks: Mapping[str, nn.Module], about: Mapping[str, Any], *, kept: float | None = None
) -> None:
    """Write the networks by name, and ``about`` (plain values), to ``folder`` (replaced if it is there).

    ``kept``: covariances, which are called that, by factors with this part of their trace; None: as they are.
    """
    weights = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, network in networks.items()
        for key, tensor in network.state_dict().items()
    }
    if kept is not None:
        for name in [name for name, t in weights.items() if name.endswith(".covariance") and len(t) == t.shape[-1]]:
            weights[name + FACTOR] = factor(weights.pop(name), kept)
    about = {"format": FORMAT, **about, "weights": _fingerprint(weights)}
    about["content"] = _content(about)
    with runs.atomic_folder(folder, replace=True) as partial:
        runs.atomic_write(partial / "weights.safetensors", save_tensors(weights))
        runs.write_json(partial / ABOUT, about)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What ``about`` says, and the state of each network by name.

    Raises
    ------
    InputError
        If the folder is incomplete, damaged, altered or of another format version.
    """
    about = runs.read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise InputError(f"{folder}: model format {found!r}; this version reads {FORMAT}: train the study again")
    try:
        weights = load_tensors((folder / "weights.safetensors").read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file; the model folder is incomplete") from None
    except SafetensorError as error:
        raise InputError(damaged(folder, error)) from None
    for what, found in (("weights", _fingerprint(weights)), ("content", _content(about))):
        if found != about.get(what):
            part = "the weights are" if what == "weights" else f"what {ABOUT} says is"
            raise InputError(f"{folder}: {part} not as saved (altered or cut short); restore the folder")
    by_network: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        if key.endswith(FACTOR):
            key, tensor = key.removesuffix(FACTOR), tensor.double() @ tensor.double().T
        name, _, own = key.partition(".")
        by_network.setdefault(name, {})[own] = tensor
    return about, by_network


def factor(covariance: Tensor, kept: float) -> Tensor:
    """[P, R], float16, whose product with its transpose has the part ``kept`` of the trace of covariance[P, P]."""
    values, vectors = torch.linalg.eigh(covariance.double())
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    rank = int((values.cumsum(0) < kept * values.sum()).sum()) + 1
    found: Tensor = (vectors[:, :rank] * values[:rank].sqrt()).half().contiguous()
    return found


def _fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Of names and values."""
    return runs.fingerprint(*(part for key in sorted(weights) for part in (key, weights[key])))


def _content(about: Mapping[str, Any]) -> str:
    """The fingerprint of all that is said, but for itself."""
    return runs.fingerprint(json.dumps({k: v for k, v in about.items() if k != "content"}, sort_keys=True))


def damaged(folder: Path, error: Exception) -> str:
    """What is said of a folder that cannot be read."""
    return f"{folder}: the model is damaged ({' '.join(str(error).split())[:200]})"
