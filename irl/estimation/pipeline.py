"""The whole estimation in order: panel -> P -> Q -> R, and the dynamics beside them -> refit -> fitted model.

``estimate`` works on a panel in memory; ``train`` is the same with a run folder around it. Each finished step is stored
in ``RUN/steps``, and a training that takes long between its epochs, so that a run that was stopped goes on from there.
Of several processes (:mod:`irl.estimation.dealt`) the first one reads and writes the run folder.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from irl import bellman, processes, runs
from irl.config import Config, InputError
from irl.data.describe import summary
from irl.data.disclosure import NOTHING, Withheld, withheld_of
from irl.data.panel import Panel
from irl.data.sampling import sampling
from irl.estimation import attention
from irl.estimation.anchor_q import fit_anchor_q
from irl.estimation.dealt import dealt
from irl.estimation.diagnostics import check_anchor, support
from irl.estimation.dynamics import check_declared, fit_dynamics
from irl.estimation.falsification import refusal, tested
from irl.estimation.findings import by_type, findings
from irl.estimation.mixture import Mixture
from irl.estimation.policy import fit_policy
from irl.estimation.refit import RefitReport, fit_refit
from irl.estimation.reward import fit_reward
from irl.estimation.rowwise import forward, parts_of
from irl.estimation.training import Precision, Workbench
from irl.estimation.types import StartReport, checked, started
from irl.fitted import FittedModel, new_networks
from irl.networks import AnchorValueNetwork, PolicyNetwork

Metrics = dict[str, Any]
NetworkT = TypeVar("NetworkT", bound=nn.Module)


LEAST_PER_FOLD = 25
"""Members per fold below which the Q step goes without the orthogonal correction."""


class Fitted(Protocol):
    """Does a step, or takes it from where finished steps are kept."""

    def __call__(self, name: str, network: NetworkT, fit: Callable[[], tuple[NetworkT, Any]]) -> NetworkT: ...


class StepStore(Protocol):
    """Where finished steps are kept."""

    def load(self, name: str, network: nn.Module) -> Metrics | None:
        """Put the stored weights into ``network`` and return the step's metrics; None if it is not stored."""

    def save(self, name: str, network: nn.Module, metrics: Metrics) -> None:
        """Store a finished step."""


@dataclass(frozen=True)
class FolderStore:
    """Steps as files of a folder: ``NAME.safetensors``, then ``NAME.json``, whose presence means complete; until then
    ``NAME.ckpt``, a training that has not ended."""

    folder: Path
    withheld: Withheld = NOTHING

    def load(self, name: str, network: nn.Module) -> Metrics | None:
        metrics = processes.from_first(lambda: self._read(name, network))
        if metrics is not None:
            for tensor in network.state_dict().values():
                tensor.copy_(processes.agreed(tensor))
        return metrics

    def _read(self, name: str, network: nn.Module) -> Metrics | None:
        if not (self.folder / f"{name}.json").is_file():
            return None
        metrics: Metrics = runs.read_json(self.folder / f"{name}.json")
        try:
            network.load_state_dict(load_tensors((self.folder / f"{name}.safetensors").read_bytes()))
        except (OSError, RuntimeError, SafetensorError):
            raise InputError(f"{self.folder}: step {name!r} cannot be read; start again with --overwrite") from None
        return metrics

    def save(self, name: str, network: nn.Module, metrics: Metrics) -> None:
        if processes.group()[0]:
            return
        self.folder.mkdir(exist_ok=True)
        weights = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
        runs.atomic_write(self.folder / f"{name}.safetensors", save_tensors(weights))
        runs.write_json(self.folder / f"{name}.json", self.withheld.left(metrics))
        (self.folder / f"{name}.ckpt").unlink(missing_ok=True)


@dataclass(frozen=True)
class NoStore:
    """Keeps nothing: for estimations in memory."""

    def load(self, name: str, network: nn.Module) -> Metrics | None:
        return None

    def save(self, name: str, network: nn.Module, metrics: Metrics) -> None:
        pass


def train(
    config: Config,
    panel: Panel,
    run: str | Path,
    *,
    device: torch.device,
    overwrite: bool = False,
    resume: bool = False,
    precision: Precision = "32",
    compile: bool = False,
    tick: Callable[[str, int, int, float], None] | None = None,
) -> FittedModel:
    """Estimate ``config`` on ``panel`` in the run folder ``run``, and leave everything there that design asks for.

    ``precision`` (Lightning's name) and ``compile`` say how networks are trained. Every process of a group calls this,
    with the same arguments, and the whole panel or its part of it.

    Raises
    ------
    InputError
        If the folder is taken (see :func:`irl.runs.start_run`), the panel contradicts the configuration, or the study
        cannot be estimated by so many processes.
    FloatingPointError
        If a step diverges; the steps before it are kept.
    """
    about = {
        "seed": config.seed,
        "data": panel.identity(),
        "config": runs.fingerprint(config.model_dump_json()),
    }
    own, writes = dealt(config, panel, device), processes.group()[0] == 0
    check_declared(own)
    check_anchor(own)
    withheld = withheld_of(panel, config.data.min_cell)
    start = runs.start_run(run, overwrite=overwrite, resume=resume, about=about)
    with ExitStack() as held:
        folder = processes.from_first(lambda: held.enter_context(start))
        store = FolderStore(folder / "steps", withheld)
        bench = Workbench(
            device,
            config.seed,
            folder / "tb",
            precision=precision,
            compile=compile,
            checkpoints=store.folder,
            every=config.estimation.checkpoint_seconds,
        )
        bench = replace(bench, tick=tick) if tick and writes else bench
        if writes:
            runs.atomic_write(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        model, metrics = estimate(config, own, bench=bench, store=store, whole=panel if panel.origin is None else None)
        metrics = withheld.left(metrics)
        metrics["panel"] |= {"withheld": withheld.plain(), "processes": processes.group()[1]}
        if writes:
            model.save(folder / "model")
            runs.write_json(folder / runs.LAST, metrics)
    return model


def estimate(
    config: Config, panel: Panel, *, bench: Workbench, store: StepStore | None = None, whole: Panel | None = None
) -> tuple[FittedModel, Metrics]:
    """The fitted model and the metrics of every step. ``whole``: the panel, where ``panel`` is this process's part."""
    store = store or NoStore()
    e, gamma, alpha = config.estimation, config.discount, config.temperature
    described = panel_metrics(panel if whole is None else whole, config)
    panel = panel.to(bench.device)
    n_members, held_out = panel.among_all[1], held_out_rows(panel, e.validation, config.seed)
    types = config.types
    schema = panel.schema if types.number == 1 else panel.schema.with_types(types.number, dynamics=types.dynamics)
    model = new_networks(config, schema).to(bench.device)
    metrics: Metrics = {}

    def step(name: str, network: NetworkT, fit: Callable[[], tuple[NetworkT, Any]]) -> NetworkT:
        stored = store.load(name, network)
        if stored is None:
            started = time.perf_counter()
            network, report = fit()
            _refuse_broken(name, network)
            stored = {**asdict(report), "step_seconds": time.perf_counter() - started}
            store.save(name, network, stored)
        metrics[name] = stored
        return network.eval()

    mixture: Mixture | None = None
    if types.number > 1:
        mixture, start = _mixture(model, panel, held_out, config, bench, step)
        metrics["types_start"] = asdict(start)
        panel, held_out = mixture.expanded(model), held_out.repeat(types.number)
    policy = _policy(model, panel, held_out, bench, step)
    log_pi, inertia = _log_policy(policy, panel), model.inertia_of(panel.state)
    corrected = e.folds > 1 and n_members >= LEAST_PER_FOLD * e.folds
    crossed = _cross_fitted(model, panel, held_out, bench, step) if corrected else None
    anchor_q = step(
        "anchor_q",
        model.anchor_network,
        lambda: fit_anchor_q(
            panel,
            log_pi,
            held_out,
            e.anchor_q,
            discount=gamma,
            temperature=alpha,
            bench=bench,
            crossed=crossed,
            inertia=inertia,
        ),
    )
    value = _values(anchor_q, panel, log_pi, alpha)
    given: dict[str, Any] = {"discount": gamma, "temperature": alpha, "bench": bench, "inertia": inertia}
    reward = step("reward", model.reward_network, lambda: fit_reward(panel, log_pi, value, held_out, e.reward, **given))
    dynamics = step("dynamics", model.dynamics, lambda: fit_dynamics(panel, held_out, e.dynamics, bench=bench))
    model = replace(model, policy_network=policy, anchor_network=anchor_q, reward_network=reward, dynamics=dynamics)
    diagnosed = {"panel": described}
    if mixture is not None:
        model, found = _with_types(model, mixture, panel, held_out, bench, step)
        return model, {**diagnosed, **metrics, **found}
    diagnosed |= {"support": support(panel, bellman.seen_policy(log_pi, inertia))}
    if model.attention is not None:
        return model, {**_with_attention(model, panel, held_out, bench, step), **diagnosed, **metrics}
    if model.refit is not None:
        step("refit", model.refit, lambda: fit_refit(model, panel, held_out, e.refit, bench=bench))
    if e.falsification and refusal(model) is None:
        metrics["falsification"] = tested(model, panel, metrics["refit"]["precisions"])
    return model, {**diagnosed, **metrics, **findings(model, panel)}


def _policy(model: FittedModel, panel: Panel, held_out: Tensor, bench: Workbench, step: Fitted) -> PolicyNetwork:
    """The P step, with the attention of ``model``, if it has any, fitted in place."""
    options, looks = model.config.estimation.policy, model.attention
    fit = partial(fit_policy, panel, held_out, options, bench=bench, attention=looks)
    if looks is None:
        return step("policy", model.policy_network, fit)
    attention.checked(model, panel)
    looks.standardise(panel.state[panel.free])

    def both() -> tuple[nn.ModuleDict, Any]:
        network, report = fit()
        return nn.ModuleDict({"policy": network, "attention": looks}), report

    found = step("policy", nn.ModuleDict({"policy": model.policy_network, "attention": looks}), both)["policy"]
    assert isinstance(found, PolicyNetwork)
    return found


def _with_attention(model: FittedModel, panel: Panel, held_out: Tensor, bench: Workbench, step: Fitted) -> Metrics:
    """The refit with lambda, the one in which everything is decided, and what was found of both."""
    assert model.refit is not None and model.attention is not None
    options = model.config.estimation.refit
    always = replace(model, attention=None, refit=copy.deepcopy(model.refit))
    both = nn.ModuleDict({"refit": model.refit, "attention": model.attention})

    def fit() -> tuple[nn.ModuleDict, RefitReport]:
        return both, fit_refit(model, panel, held_out, options, bench=bench)[1]

    step("refit", both, fit)
    assert always.refit is not None
    plain = options.model_copy(update={"standard_errors": False})
    step("refit_always_decided", always.refit, lambda: fit_refit(always, panel, held_out, plain, bench=bench))
    return {"attention": attention.found_of(model, always, panel), **findings(model, panel)}


def _mixture(
    model: FittedModel, panel: Panel, held_out: Tensor, config: Config, bench: Workbench, step: Fitted
) -> tuple[Mixture, StartReport]:
    """Members' types to begin with, from the policy of a single type."""
    checked(model)
    assert model.shares is not None
    options, single = config.estimation.policy, PolicyNetwork(panel.schema, config.estimation.policy.hidden)
    fit = partial(fit_policy, panel, held_out, options, bench=bench, name="policy_one_type")
    network = step("policy_one_type", single.to(bench.device), fit)
    log_pi = _log_policy(network, panel)
    number, seed = config.types.number, config.seed
    posterior, report = started(panel, log_pi, held_out, number, shares=model.shares, seed=seed)
    return Mixture(panel, model.shares, posterior, torch.zeros_like(posterior)), report


def _with_types(
    model: FittedModel,
    mixture: Mixture,
    expanded: Panel,
    held_out: Tensor,
    bench: Workbench,
    step: Fitted,
) -> tuple[FittedModel, Metrics]:
    """The refit with the members' types, and what was found of them."""
    assert model.refit is not None and model.shares is not None
    options, seed = model.config.estimation.refit, model.config.seed
    mixture.moves = model.log_moves(mixture.drawn(model, seed=seed))
    both = nn.ModuleDict({"refit": model.refit, "shares": model.shares})

    def fit() -> tuple[nn.ModuleDict, RefitReport]:
        _, report = fit_refit(model, expanded, held_out, options, bench=bench, mixture=mixture)
        return both, report

    step("refit", both, fit)
    mixture.posterior = model.posterior(mixture.drawn(model, seed=seed))
    drawn = mixture.drawn(model, seed=seed)
    known = support(drawn, _log_policy(model.policy_network, drawn))
    return model, {"support": known, **findings(model, drawn), "types": by_type(model, drawn, mixture.posterior)}


def _cross_fitted(model: FittedModel, panel: Panel, held_out: Tensor, bench: Workbench, step: Fitted) -> Tensor:
    """log pi[N, A] of every row, by a policy fitted on the members of the other folds."""
    config, e = model.config, model.config.estimation
    number, members = panel.among_all
    members //= panel.schema.types  # an expanded panel has each once per type, block by block
    order = torch.randperm(members, generator=torch.Generator().manual_seed(config.seed + 1))
    fold = (order % e.folds).to(panel.member.device)[number % members]
    crossed = panel.room(panel.n_rows, panel.n_actions)
    for k in range(e.folds):
        mine = fold == k
        fresh = PolicyNetwork(panel.schema, e.policy.hidden).to(bench.device)
        name = f"policy_fold_{k + 1}"
        about: dict[str, Any] = {"left_out": mine, "attention": model.attention, "bench": bench, "name": name}
        fit = partial(fit_policy, panel, held_out, e.policy, **about)
        network = step(name, fresh, fit)
        with torch.no_grad():
            for i in parts_of(mine):
                crossed[i] = network(panel.state[i], panel.menu[i])
    return crossed


def held_out_rows(panel: Panel, share: float, seed: int) -> Tensor:
    """bool [N]: rows of the members held out, drawn once for all steps; at least one member on each side."""
    number, members = panel.among_all
    order = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(members, dtype=torch.bool)
    chosen[order[: min(max(round(share * members), 1), members - 1)]] = True
    return chosen.to(number.device)[number]


def panel_metrics(panel: Panel, config: Config) -> Metrics:
    """Sizes of the panel, its sampling, and how often the anchor was chosen, by segment (None: there was no choice)."""
    found = summary(panel, estimation=config.estimation)
    segments = {
        name: {"decisions": rows, "anchor_share": share if rows else None}
        for name, (rows, share) in found.anchor_share.items()
    }
    return {
        "rows": found.rows,
        "members": found.members,
        "transitions": found.transitions,
        "gaps": found.gaps,
        "segments": segments,
        "sampling": asdict(sampling(panel, config.data)),
    }


def _log_policy(network: PolicyNetwork, panel: Panel) -> Tensor:
    """log pi[N, A] of all rows."""
    return forward(panel, lambda i: network(panel.state[i], panel.menu[i]), panel.n_actions)


def _values(network: AnchorValueNetwork, panel: Panel, log_pi: Tensor, temperature: float) -> Tensor:
    """V(s)[N] of all rows, given log_pi[N, A]."""

    def of(i: slice) -> Tensor:
        reference = panel.schema.reference(panel.state[i], panel.menu[i])
        w = network(panel.state[i], reference, panel.anchor_reward[i])
        return bellman.value_from_reference(w, bellman.reference_log_policy(log_pi[i], reference), temperature)

    return forward(panel, of)


def _refuse_broken(name: str, network: nn.Module) -> None:
    """FloatingPointError if a finished step has weights that are no numbers."""
    infinite = {key for key, tensor in network.named_parameters() if bool(tensor.isinf().any())}
    broken = [k for k, tensor in network.state_dict().items() if k in infinite or bool(tensor.isnan().any())]
    if broken:
        raise FloatingPointError(
            f"{name}: {', '.join(broken[:3])} came out as no finite number, and is not kept; look for outliers in the "
            "state's numbers and in the anchor's reward, or ask for less of `estimation`"
        )
