"""The member bootstrap of a finished run: ``RUN/bootstrap.json``, and the replicas' parameters beside it.

Every replica is solved by :mod:`irl.estimation.resampling`; what is linear in the parameters (mean rewards, what
benefits contribute, coefficients) is then set against its analytic standard error. Means are over the panel's own
states, as in :mod:`irl.estimation.findings`. Replicas come in blocks, and each finished block is stored: a bootstrap
that was stopped goes on where it was. A replica does not depend on the number of replicas, but for the tolerance to
which all are solved.

Source of the percentile interval: Efron (1979).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from irl import runs
from irl.config import InputError
from irl.data.disclosure import withheld_of
from irl.data.panel import Panel
from irl.estimation.findings import quantities
from irl.estimation.resampling import STILL, equations_of, multiplicities, solved
from irl.fitted import FittedModel

RESULT, DRAWS = "bootstrap.json", "bootstrap.safetensors"
NUMBERS = 100_000_000
"""Rows times actions times replicas of a block, at most: the numbers of its choice probabilities."""
MOST = 50
"""Replicas of a block, at most."""
LEAST_CLUSTERS = 10
"""Below so many members (or clusters) resampling them says nothing."""


def bootstrap(
    run: str | Path,
    model: FittedModel,
    panel: Panel,
    *,
    replicas: int,
    seed: int,
    overwrite: bool = False,
    tick: Callable[[int, int], None] = lambda done, rounds: None,
) -> dict[str, Any]:
    """Resample the members of a finished run, store what follows in its folder, and return what was written.

    Parameters
    ----------
    model, panel : of the run, on one device.
    tick : called with the replicas done, and the rounds that those in work have taken so far.

    Raises
    ------
    InputError
        If the run is unfinished, has no refit or no anchor action, was trained on other data, or was bootstrapped
        already.
    """
    folder = runs.complete_run(run)
    precisions = _checked(folder, model, panel)
    if replicas < 2:
        raise InputError(f"--replicas {replicas}: a spread needs at least 2; 50 tell it to a tenth, 200 to a twentieth")
    assert model.refit is not None
    withheld = withheld_of(panel, model.config.data.min_cell)
    withheld.refuse_nothing()
    about = {"seed": str(seed), "fit": runs.fingerprint(model.refit.theta, panel.state, panel.action)}
    with runs.locked(folder):
        if overwrite:
            for name in (RESULT, DRAWS):
                (folder / name).unlink(missing_ok=True)
        elif (folder / RESULT).exists():
            raise InputError(f"{folder / RESULT}: already there; give --overwrite to replace it")
        started = time.perf_counter()
        theta, change = _stored(folder / DRAWS, about, model)
        if len(theta) < replicas:
            equations = equations_of(model, panel, precisions)
            for block in _blocks(len(theta), replicas, panel):
                counts = torch.stack([multiplicities(int(panel.cluster.max()) + 1, b, seed=seed) for b in block])
                tick(block.start, 0)
                found = solved(equations, counts, tick=partial(tick, block.start))
                theta, change = torch.cat([theta, found.theta]), torch.cat([change, found.change])
                content = {"theta": theta.cpu().contiguous(), "change": change.cpu()}
                runs.atomic_write(folder / DRAWS, save_tensors(content, metadata=about))
            tick(replicas, 0)
        result = {
            "replicas": replicas,
            "seed": seed,
            "clusters": len(panel.cluster.unique()),
            "unconverged": int((change[:replicas] > STILL).sum()),
            "seconds": time.perf_counter() - started,
            "quantities": summary(model, panel, theta[:replicas]),
        }
        runs.write_json(folder / RESULT, withheld.left(result))
    return result


def summary(model: FittedModel, panel: Panel, theta: Tensor) -> list[dict[str, Any]]:
    """kind, action, segment, name; estimate, se, bootstrap_se, ratio, low, high of what is linear in the parameters.

    ``low`` and ``high`` are the 2.5 and 97.5 % quantiles over the replicas theta[R, A, Dx]; ``ratio`` is that of the
    bootstrap's standard error to the analytic one (None without).
    """
    assert model.refit is not None
    refit, found = model.refit, []
    paid = [a for a in range(len(refit.theta)) if a != refit.anchor]
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64, device=theta.device)
    for quantity in quantities(model, panel):
        values = torch.einsum("rad,ad->r", theta, quantity.contrast)
        free = quantity.contrast[paid].flatten()
        se = float((free @ refit.covariance @ free).clamp_min(0).sqrt())
        low, high = values.quantile(levels).tolist()
        found.append({
            "kind": quantity.kind,
            "action": quantity.action,
            "segment": quantity.segment,
            "name": quantity.name,
            "estimate": float((quantity.contrast * refit.theta).sum()),
            "se": se if model.has_standard_errors else None,
            "bootstrap_se": float(values.std()),
            "ratio": float(values.std()) / se if model.has_standard_errors and se > 0 else None,
            "low": low,
            "high": high,
        })  # fmt: skip
    return found


def _checked(folder: Path, model: FittedModel, panel: Panel) -> list[float]:
    """The precisions of the prior, if the run can be bootstrapped."""
    if model.refit is None:
        raise InputError(f"{folder}: there is no refit to resample; train with `estimation.refit.rounds: 2`")
    model.refuse_attention("the bootstrap")
    if model.schema.anchor is None:
        raise InputError(f"{folder}: the bootstrap is for studies with `anchor: {{action: ...}}`")
    metrics = runs.read_json(folder / runs.LAST)
    precisions = metrics.get("refit", {}).get("precisions")
    if precisions is None:
        raise InputError(f"{folder}: trained by an earlier version, which did not keep the prior; train it again")
    trained_on = runs.read_json(folder / runs.PROVENANCE).get("about", {}).get("data")
    if trained_on != panel.identity():
        raise InputError(f"{model.config.data.path}: not what {folder} was trained on; restore it, or train again")
    clusters = len(panel.cluster.unique())
    if clusters < LEAST_CLUSTERS:
        raise InputError(f"only {clusters} members or clusters to resample: at least {LEAST_CLUSTERS} are needed")
    return [float(p) for p in precisions]


def _stored(path: Path, about: dict[str, str], model: FittedModel) -> tuple[Tensor, Tensor]:
    """theta [n, A, Dx] and last changes [n] of the replicas that an earlier call on the same fit finished."""
    assert model.refit is not None
    with suppress(FileNotFoundError, SafetensorError), safe_open(path, framework="pt") as file:
        if file.metadata() == about:
            return file.get_tensor("theta").to(model.device), file.get_tensor("change").to(model.device)
    return model.refit.theta.new_zeros(0, *model.refit.theta.shape), model.refit.theta.new_zeros(0)


def _blocks(first: int, replicas: int, panel: Panel) -> Iterator[range]:
    size = min(MOST, max(1, NUMBERS // (panel.n_rows * panel.n_actions)))
    for start in range(first, replicas, size):
        yield range(start, min(start + size, replicas))
