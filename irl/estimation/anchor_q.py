"""Q step: what follows the anchor is worth, from the fixed point that knows the anchor's reward.

    c(s,a) = gamma^k E[g(s') + sum_b mu(b|s') c(s',b) - alpha l(s') | s,a] ,   l(s) = sum_b nu(b|s) log pi(b|s)

(mu(A|s) = 1 for an anchor action A; nu = mu where everything is decided, else mu - (1 - lambda) 1{b = default}) is
linear in c, so on the rows where mu(a|s) > 0 the kernel (:mod:`irl.evaluation`) solves the last layer exactly, with a
ridge that held-out members choose. The trunk under it is trained by gradient toward the fixed point's target for some
epochs, then the last layer is solved again, and so on (``solver: lstd``). ``solver: fqi`` is the paper's fitted Q
iteration (FQI-I): gradient only, the target refreshed every round; it takes over where the kernel's equations are too
near singular to be solved.

Errors of pi would enter the target in full and be amplified by gamma/(1 - gamma). Where the next choice a' is observed,
l(s') is therefore corrected by

    sum_b nu(b|s') (1{a' = b} - pi~(b|s')) / (lambda pi(b|s')) ,       pi~ = pi and lambda = 1 where all is decided,

whose expectation is the first-order error of l with its sign reversed, so that such errors cancel; pi comes from
members of the other fold, so that it does not know a' (Neyman orthogonality with cross-fitting: Chernozhukov et al.
2018). The denominators are not taken below ``FLOOR``. This is paid for with noise of variance (1 - pi)/pi: where the
P step is good already, the correction does harm (simulated market, 4,000 x 36, gamma .95, rms error of Q(s,A): .32
without it, .53 with it). So both targets are solved for, and the one is taken whose solution leaves held-out members
the smaller projected residual, by the corrected target, which is right to first order for either.

Departures from the paper: the exact last layer, the crossings of the columns beside the trunk's features (on the
simulated market, 4,000 x 36, they halved the error of Q(s,A) at gamma = .95, from .51 to .26), and this correction.
Limits: c(s,a) is learned where a was chosen and extrapolated elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from irl import bellman, evaluation, processes
from irl.config import AnchorQStep
from irl.data.batches import Batches, Numbered
from irl.data.panel import Panel
from irl.estimation.rowwise import forward, parts_of
from irl.estimation.training import Fitting, Trained, Workbench, train
from irl.networks import AnchorValueNetwork

FLOOR = 0.01
"""The smallest probability of the anchor that the correction is divided by."""


EXPLODED = 10.0
"""Times the largest possible value that the final residual may come to."""
FOLDS = 5
"""Parts of the members on which the ridge is chosen."""
TORN = 5.0
"""Times what it is before training (and the variance of the goals) that the squared distance to them may come to."""
SLOWER = (1.0, 0.1, 0.0)
"""Times the learning rate, one after the other where a training explodes; in the end the trunk stays as it began."""
FALL_BACK_ROUNDS = 100
"""Fitted iterations where the kernel's equations cannot be solved."""


@dataclass(frozen=True)
class AnchorRows:
    """The panel's rows where the reference might have acted so and what followed is known, N of them.

    ``block[N]`` is the action's place among the L that the reference ever takes, ``next_reference[N, L]`` mu(.|s'),
    ``targets[N, K]`` gamma^k (g(s') - alpha l(s')) in reward units, plain and, if pi of other folds was given,
    corrected; ``discount[N]`` gamma^k, 0 at an end; ``fold[N]`` the member's part of ``FOLDS``; ``floored[N]`` whether
    a pi(b|s') with mu(b|s') > 0 is below the floor.
    """

    state: Tensor
    block: Tensor
    next_state: Tensor
    next_reference: Tensor
    discount: Tensor
    targets: Tensor
    weight: Tensor
    held_out: Tensor
    fold: Tensor
    floored: Tensor

    def goal(self, network: AnchorValueNetwork, target: int, index: slice) -> Tensor:
        """[n]: the target under the continuation as the network has it."""
        following = network.continuation(self.next_state[index], self.next_reference[index])
        return self.targets[index, target] + self.discount[index] * following

    def prediction(self, network: AnchorValueNetwork, index: Tensor | slice = slice(None)) -> Tensor:
        """[n]: c(s,a)."""
        chosen = torch.nn.functional.one_hot(self.block[index], self.next_reference.shape[1])
        return network.continuation(self.state[index], chosen.to(self.targets.dtype))


@dataclass(frozen=True)
class AnchorQReport:
    """How the Q step ended.

    ``bellman_residual`` is the root mean square of target + gamma^k c(s') - c(s) on held-out rows, in reward units; it
    contains the spread of V(s') given s and does not go to zero. ``ridge`` is the one used, ``unexplained`` the share
    of a constant's projected residual that is left; ``condition``, ``solve_residual`` and
    ``converged`` are the kernel's (None under fqi). ``fell_back``: the kernel's equations could not be solved, and
    fitted iteration was used instead. ``floored_share`` is the share of rows whose next pi of the reference is below
    ``FLOOR``; ``corrected`` whether the orthogonal target was used.
    """

    rows: int
    corrected: bool
    floored_share: float
    bellman_residual: float
    ridge: float | None
    unexplained: float | None
    condition: float | None
    solve_residual: float | None
    converged: bool | None
    fell_back: bool
    trained: Trained


class AnchorQStepModule(Fitting):
    """Squared distance to the fixed point's target under the last refresh, over its variance; a batch is (row index,
    weight)."""

    def __init__(self, network: AnchorValueNetwork, options: AnchorQStep, rows: AnchorRows, panel: Panel) -> None:
        super().__init__(network, options)
        self.rows, self.panel, self.rounds = rows, panel, options
        self.choice = evaluation.Choice(0.0, rows.targets.shape[1] - 1, 1.0)  # made once, by the first refresh
        self.goals: Tensor | None = None
        self.spread = _variance(rows.targets[:, -1][~rows.held_out])

    def total_epochs(self) -> int:
        return self.rounds.rounds * self.rounds.max_epochs

    def on_train_epoch_start(self) -> None:
        if self.current_epoch % self.rounds.max_epochs == 0:
            self.refresh()

    def refresh(self) -> None:
        """Solve the last layer (lstd), then take the target of every row under the network as it stands."""
        network = self.network
        assert isinstance(network, AnchorValueNetwork)
        rows, fit = self.rows, ~self.rows.held_out
        if self.rounds.solver == "lstd":
            if self.goals is None:
                self.choice = choice(network, rows, self.rounds, fit)
            solve_head(network, rows, ridge=self.choice.ridge, target=self.choice.target, where=fit)
        target = self.choice.target
        self.goals = forward(self.panel, lambda i: rows.goal(network, target, i), rows=len(rows.block))
        self.spread = _variance(self.goals[fit])
        residual = self.residual()
        self.exploded = TORN * (1 + residual**2 / float(self.spread))
        if self.logger is not None:
            self.logger.log_metrics({"bellman_residual": residual}, step=self.current_epoch)

    @torch.no_grad()
    def residual(self) -> float:
        """Root mean square distance to the goals, on held-out rows."""
        network, goals = self.network, self.goals
        assert isinstance(network, AnchorValueNetwork) and goals is not None
        found = [goals[i] - self.rows.prediction(network, i) for i in parts_of(self.rows.held_out)]
        return rms(torch.cat([goals[:0], *found]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {"choice": astuple(self.choice), "goals": self.goals, "spread": self.spread, "exploded": self.exploded}
        checkpoint["refreshed"] = kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint["refreshed"]
        self.choice = evaluation.Choice(*kept["choice"])
        if kept["goals"] is not None:
            self.goals = self.panel.room(len(kept["goals"]))
            self.goals.copy_(kept["goals"])
        self.spread, self.exploded = kept["spread"].to(self.rows.weight.device), kept["exploded"]

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        index, weight = batch
        assert isinstance(self.network, AnchorValueNetwork) and self.goals is not None
        return (self.rows.prediction(self.network, index) - self.goals[index]).square() / self.spread, weight


def anchor_rows(
    panel: Panel,
    log_pi: Tensor,
    held_out: Tensor,
    *,
    discount: float,
    temperature: float,
    crossed: Tensor | None = None,
    inertia: bellman.Inertia | None = None,
) -> AnchorRows:
    """Rows with mu(a|s) > 0 whose next decision (or end) is known.

    Parameters
    ----------
    log_pi : [N, A], of all rows.
    held_out : bool [N], of all rows.
    crossed : log pi [N, A] of all rows, each from members of another fold, for the orthogonal correction.
    inertia : of all rows, if some pass without a decision.
    """
    schema = panel.schema
    where = forward(panel, lambda i: _acted(panel, i), dtype=torch.bool)
    place = torch.zeros(panel.n_actions, dtype=torch.long, device=where.device)
    place[list(schema.referred)] = torch.arange(len(schema.referred), device=where.device)
    number, members = panel.among_all
    fold = (torch.randperm(members, generator=torch.Generator().manual_seed(0)) % FOLDS).to(where.device)

    def of(rows: Tensor) -> AnchorRows:
        following, ends = panel.next_choice[rows], panel.ends[rows]
        menu, gamma = panel.menu[following], discount ** panel.steps[rows] * ~ends
        mu = schema.reference(panel.state[following], menu).to(log_pi.dtype).masked_fill(ends.unsqueeze(1), 0.0)
        reward = panel.anchor_reward[following].masked_fill(ends, 0.0)
        pi = log_pi[following].exp()
        passes = None if inertia is None else inertia.at(following)
        nu = bellman.reference_of_value(mu, menu, passes).masked_fill(ends.unsqueeze(1), 0.0)
        expected = [bellman.reference_log_policy(log_pi[following], nu)]
        if crossed is not None:
            pi = crossed[following].exp()
            again = torch.nn.functional.one_hot(panel.action[following], pi.shape[1]).to(pi.dtype)
            seen = bellman.seen_policy(crossed[following], passes).exp()
            decided = pi if passes is None else pi * passes.within(menu).unsqueeze(1)
            correction = (nu * (again - seen) / decided.clamp_min(FLOOR)).sum(1)
            expected.append(bellman.reference_log_policy(crossed[following], nu) + correction)
        targets = [bellman.reference_target(reward, 0.0, e, gamma, temperature) for e in expected]
        return AnchorRows(
            state=panel.state[rows],
            block=place[panel.action[rows]],
            next_state=panel.state[following],
            next_reference=mu[:, list(schema.referred)],
            discount=gamma,
            targets=torch.stack(targets, 1),
            weight=panel.weight[rows],
            held_out=held_out[rows],
            fold=fold[number[rows]],
            floored=((pi < FLOOR) & (mu > 0)).any(1),
        )

    n, first, empty = int(where.sum()), 0, vars(of(torch.arange(0, device=where.device)))
    found = {name: panel.room(n, *values.shape[1:], dtype=values.dtype) for name, values in empty.items()}
    for rows in parts_of(where):
        for name, values in vars(of(rows)).items():
            found[name][first : first + len(rows)] = values
        first += len(rows)
    return AnchorRows(**found)


def _acted(panel: Panel, i: slice) -> Tensor:
    """bool[n]: rows where the reference might have acted so and what followed is known."""
    mu = panel.schema.reference(panel.state[i], panel.menu[i]).gather(1, panel.action[i].unsqueeze(1)).squeeze(1)
    return panel.free[i] & (panel.next_choice[i] >= 0) & (mu > 0)


def rms(values: Tensor) -> float:
    """Root mean square, over the rows of all processes."""
    return float(processes.mean(values.square()).sqrt())


def _variance(values: Tensor) -> Tensor:
    """Over the rows of all processes; not 0."""
    return processes.spread(values, correction=1).square().clamp_min(1e-6).to(values.dtype)


@torch.no_grad()
def chunks_of(
    network: AnchorValueNetwork, rows: AnchorRows, where: Tensor | None = None, chunk: int = 16384
) -> Iterator[evaluation.Rows]:
    """The rows (those of where[N]) for the kernel; one block if the reference is one action."""
    several = rows.next_reference.shape[1] > 1
    used = torch.ones_like(rows.held_out) if where is None else where
    for i in parts_of(used, chunk):
        yield evaluation.Rows(
            phi=network.features(rows.state[i]).double(),
            phi_next=network.features(rows.next_state[i]).double(),
            discount=rows.discount[i].double() * (1.0 if several else rows.next_reference[i, 0].double()),
            target=rows.targets[i].double(),
            weight=rows.weight[i].double(),
            action=rows.block[i] if several else None,
            next_policy=rows.next_reference[i].double() if several else None,
        )


def choice(network: AnchorValueNetwork, rows: AnchorRows, options: AnchorQStep, where: Tensor) -> evaluation.Choice:
    """Ridge and target as held-out members of where[N] choose them; a ridge that is given stays."""
    ridges = evaluation.RIDGES if options.ridge == "auto" else (options.ridge,)
    parts = [where & (rows.fold == k) for k in range(FOLDS)]
    parts = [part for part in parts if processes.anywhere(part.any())]
    if len(parts) < 2:
        return evaluation.Choice(ridges[-1], 0, 1.0)
    folds: list[Callable[[], Iterable[evaluation.Rows]]] = [partial(chunks_of, network, rows, part) for part in parts]
    return evaluation.chosen(folds, actions=rows.next_reference.shape[1], ridges=ridges, dealt=True)


def solve_head(
    network: AnchorValueNetwork,
    rows: AnchorRows,
    *,
    ridge: float,
    target: int = -1,
    where: Tensor | None = None,
    chunk: int = 16384,
) -> evaluation.Solution:
    """Solve the network's last layer on ``rows`` (those of where[N]) by the kernel, for one target, in place."""
    chunks = chunks_of(network, rows, where, chunk)
    sums = evaluation.accumulate(chunks, actions=rows.next_reference.shape[1], dealt=True)
    solution = evaluation.solve(sums, ridge=ridge)
    network.head.data.copy_(processes.agreed(solution.weights[:, :, target]))
    return solution


def _refuse_exploded(residual: float, rows: AnchorRows) -> None:
    """FloatingPointError if the residual is far beyond what values can be: |c| <= max |target| / (1 - max gamma)."""
    if not processes.anywhere(len(rows.state) > 0):
        return
    nothing = rows.targets.new_zeros(1)
    largest = [torch.cat([v.flatten(), nothing]).max() for v in (rows.targets.abs(), rows.discount)]
    target, discount = processes.highest(torch.stack(largest)).tolist()
    most = target / (1 - discount)
    if not residual <= EXPLODED * most:
        raise FloatingPointError(
            f"anchor_q: the Bellman residual is {residual:.3g}, where values can be {most:.3g} at most; set "
            "estimation.anchor_q.solver to lstd, lower estimation.anchor_q.learning_rate, or raise its ridge"
        )


def _trained(
    panel: Panel, rows: AnchorRows, options: AnchorQStep, bench: Workbench
) -> tuple[AnchorValueNetwork, AnchorQStepModule, Trained]:
    """The network with its trunk trained; slower where that tears it from the solved layer (whose weights are large and
    cancel where rows are few)."""
    columns = (Numbered(len(rows.block), bench.device), rows.weight)
    sides = (
        Batches(columns, batch_size=options.batch_size, seed=bench.seed + 1, where=~rows.held_out),
        Batches(columns, batch_size=65536, seed=None, where=rows.held_out),
    )
    for slower in SLOWER:
        torch.manual_seed(bench.seed + 1)
        network = AnchorValueNetwork(panel.schema, options.hidden).to(bench.device)
        slowed = options.model_copy(update={"learning_rate": options.learning_rate * slower})
        step = AnchorQStepModule(network, slowed, rows, panel)
        sides[0].epoch = 0
        try:
            return network, step, train(step, *sides, name="anchor_q", bench=bench, keep_best=False)
        except FloatingPointError:
            if slower == SLOWER[-1] or options.solver != "lstd":
                raise
    raise AssertionError("the last try returns or raises")


def fit_anchor_q(
    panel: Panel,
    log_pi: Tensor,
    held_out: Tensor,
    options: AnchorQStep,
    *,
    discount: float,
    temperature: float,
    bench: Workbench,
    crossed: Tensor | None = None,
    inertia: bellman.Inertia | None = None,
) -> tuple[AnchorValueNetwork, AnchorQReport]:
    """Fit what follows the anchor. Arguments as in :func:`anchor_rows`; FloatingPointError if the values explode."""
    given = {"discount": discount, "temperature": temperature}
    rows = anchor_rows(panel, log_pi, held_out, **given, crossed=crossed, inertia=inertia)
    network, step, trained = _trained(panel, rows, options, bench)
    final, solution = step.choice, None
    if options.solver == "lstd":
        solution = solve_head(network, rows, ridge=final.ridge, target=final.target)
        if not solution.converged:
            iterated = options.model_copy(update={"solver": "fqi", "rounds": FALL_BACK_ROUNDS, "max_epochs": 1})
            network, report = fit_anchor_q(
                panel, log_pi, held_out, iterated, **given, bench=bench, crossed=crossed, inertia=inertia
            )
            report = replace(report, condition=solution.condition, solve_residual=solution.residual, converged=False)
            return network, replace(report, ridge=final.ridge, fell_back=True)
    step.goals = forward(panel, lambda i: rows.goal(network, final.target, i), rows=len(rows.block))
    residual = step.residual()
    _refuse_exploded(residual, rows)
    bench.record("anchor_q", {"final_bellman_residual": residual})
    return network, AnchorQReport(
        rows=int(processes.total(len(rows.state))),
        corrected=crossed is not None and final.target == 1,
        floored_share=processes.total(rows.floored.sum()) / max(1.0, processes.total(len(rows.floored))),
        bellman_residual=residual,
        ridge=final.ridge if solution else None,
        unexplained=final.unexplained if solution else None,
        condition=solution.condition if solution else None,
        solve_residual=solution.residual if solution else None,
        converged=solution.converged if solution else None,
        fell_back=False,
        trained=trained,
    )
