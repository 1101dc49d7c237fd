"""Refit: the reward of highest likelihood, given what its features are worth under the policy.

The reward is linear in features x(s) (main effects and interactions, or columns as they are: ``reward.structure``), one
vector of weights theta_a for every action but the anchor, whose reward is g(s). Under a policy pi the kernel evaluates
every feature at once: choosing a in s gives

    Q(s,a) = x(s).theta_a + c(s,a),   c = zeta(s,a).theta + epsilon(s,a),
    zeta, epsilon: discounted sums of the features, and of g and the taste shocks, from the next choice on,

so choice probabilities are a conditional logit in theta, which Newton's method maximises. The policy that results takes
the place of pi and everything is done again (``rounds``): nested pseudo-likelihood, which in its first round is already
insensitive to first-order errors of pi, and whose fixed point is the maximum-likelihood estimate.

Where the anchor is a policy mu (an anchor by state is one), the reward is f - sum_b mu(b|s) f(s,b) + g with f linear
(:mod:`irl.refitted`): the present choice does not depend on what all actions share, and what follows earns
(pi(b|s') - mu(b|s')) x(s') for the weights of action b, and g(s').

Every group of features (the interactions of two columns, for one action) has a normal prior with mean 0 and a
precision of its own, found by maximising the evidence (Laplace): groups that explain nothing are shrunk away, so that
many can be offered. There is nothing to tune. A linear reward without ``select`` has no prior: maximum likelihood.

Sources: Aguirregabiria & Mira (2002) for the pseudo-likelihood; MacKay (1992), Tipping (2001) for the evidence; Geng et
al. (2020) for the anchor. Departures from the design: a precision per group by evidence instead of one ridge by
held-out likelihood, a prior mean of 0 instead of the R step's reward, and draws from the fitted dynamics instead of
logged transitions. Measured on the simulated market (4,000 x 36): with one ridge toward the R step the annual plan's
reward kept an RMSE of .26-.33 and an R2 within cells of .69-.81; with the evidence .12 and .96.

What follows is drawn from the fitted dynamics: from every state where these are few (:func:`irl.draws.spanned`),
so that discounts next to 1 leave no more than rounding behind (Rust's buses at .9999: within .02 of exact maximum
likelihood's replacement cost of 10.27), else from a sample of the panel's.

Limits: what the features cannot express is not found; conditional on the dynamics model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from irl import bellman, evaluation, processes
from irl.config import Refit
from irl.data.panel import Panel
from irl.estimation import attention
from irl.estimation.evaluation_rows import evaluation_rows
from irl.estimation.inference import covariance
from irl.estimation.logit import CHUNK, EVIDENCE_ROWS, FREE, Choices, Logit, evidence, maximised
from irl.estimation.missing_information import missing
from irl.estimation.mixture import ROUNDS, Mixture
from irl.estimation.parameters import Parameters, reward_parameters
from irl.estimation.training import Workbench
from irl.fitted import FittedModel
from irl.refitted import Refitted
from irl.transitions import Transitions, Unchanged, kernel_rows

PRIOR_ROWS = 500
"""The first guess of every group's precision: one part in so many of the choices."""
STILL = 1e-4
"""Mean absolute change of the choice probabilities below which no further round is made."""
EVIDENCE = (14, 5)
"""Updates of the groups' precisions, in the first round and in later ones."""


@dataclass(frozen=True)
class RefitReport:
    """How the refit ended.

    ``log_likelihood`` is the mean over all choices, ``held_out_log_likelihood`` that of held-out members under weights
    maximised without them; ``effective_parameters`` those that the data determine rather than the prior, ``precisions``
    the prior's, by group; ``policy_change`` the mean absolute change of the choice probabilities in each round;
    ``condition``, ``solve_residual`` and ``converged`` are the kernel's.

    ``form_gap`` is by how much more likely, per choice, held-out members' choices are under the P step's network, which
    has no form, than under that refit; ``form_gap_se`` its standard error, by cluster (None: not compared, with hidden
    types or inattention). Where the features of the reward can express it, the refit, which learns less, is the better.
    """

    choices: int
    log_likelihood: float
    held_out_log_likelihood: float
    form_gap: float | None
    form_gap_se: float | None
    effective_parameters: float
    precisions: list[float]
    policy_change: list[float]
    condition: float
    solve_residual: float
    converged: bool
    seconds: float


@dataclass(frozen=True)
class TypesReport(RefitReport):
    """With hidden types: log-likelihoods have them integrated out, member by member. ``bic`` of the whole, by members;
    ``climbs`` the penalised log-likelihood after each step, by round of the refit; ``monotone``: within none of
    these did it fall."""

    bic: float
    climbs: list[list[float]]
    monotone: bool


def fit_refit(
    model: FittedModel,
    panel: Panel,
    held_out: Tensor,
    options: Refit,
    *,
    bench: Workbench,
    mixture: Mixture | None = None,
    inspect: Callable[[Logit, Choices, Tensor, Tensor], None] | None = None,
) -> tuple[Refitted, RefitReport]:
    """The refit of ``model`` (whose P, Q, R and dynamics are fitted) on ``panel``; ``held_out`` is bool [N].

    With hidden types ``panel`` is the expanded one of ``mixture``, which is left with the posteriors that were found.
    ``inspect`` is called at the end with the logit, the choices, theta[P] and the prior's precisions [P].
    """
    started = time.perf_counter()
    assert model.refit is not None, "the model has no room for a refit"
    states, rows = evaluation_rows(model.dynamics, panel, most=options.rows, seed=bench.seed)
    own = reward_parameters(model, states)
    found = _in_rounds(model, panel, rows, own, options, bench, mixture)
    logit, theta, choices, precision = found.logit, found.theta, found.choices, found.prior
    if options.standard_errors:
        counted, lacking, whole = choices, None, panel
        if mixture is not None:
            lacking, whole = missing(mixture, logit, theta, choices), mixture.expanded(model)
            counted = Choices(model, whole, whole.free.nonzero().squeeze(1), {})
        spread = covariance(model, whole, rows, counted, logit, theta, precision, lacking)
        _store_covariance(model, spread, own)
    log_likelihood = logit.log_likelihood if mixture is None else partial(mixture.log_likelihood, logit)
    likelihood = log_likelihood(theta, choices) / choices.mass
    choices.cache.clear()
    inside, outside = (_choices(model, panel, side, mixture) for side in (~held_out, held_out))
    without, _ = maximised(logit, inside, theta, precision)
    if mixture is not None:
        without, _ = mixture.climb(logit, inside, without, precision, aside=True)
    if inspect is not None:
        inspect(logit, choices, theta, precision)
    compared = mixture is None and model.attention is None
    gap, gap_se = _form_gap(model, panel, logit, without, outside) if compared else (None, None)
    report = RefitReport(
        choices=int(processes.total((panel.free if mixture is None else mixture.panel.free).sum())),
        log_likelihood=likelihood,
        held_out_log_likelihood=log_likelihood(without, outside) / outside.mass,
        form_gap=gap,
        form_gap_se=gap_se,
        effective_parameters=found.effective,
        precisions=found.precision.tolist(),
        policy_change=found.changes,
        condition=found.solution.condition,
        solve_residual=found.solution.residual,
        converged=found.solution.converged,
        seconds=time.perf_counter() - started,
    )
    if mixture is not None:
        parameters = found.effective + mixture.shares.weight[1:].numel()
        report = TypesReport(
            **asdict(report),
            bic=-2 * likelihood * choices.mass + parameters * math.log(mixture.panel.n_members),
            climbs=mixture.traces,
            monotone=mixture.monotone,
        )
    bench.tick("refit", len(found.changes), len(found.changes), -report.held_out_log_likelihood)
    bench.record("refit", {"held_out_log_likelihood": report.held_out_log_likelihood})
    return model.refit, report


@dataclass(frozen=True)
class _Found:
    """Where the rounds ended: theta[P] and the prior's precisions (by group, and [P]), how many parameters the data
    determine, the last round's logit and solution, the choices, and how far each round moved the policy."""

    theta: Tensor
    precision: Tensor
    prior: Tensor
    effective: float
    logit: Logit
    solution: evaluation.Solution
    choices: Choices
    changes: list[float]


def _in_rounds(
    model: FittedModel,
    panel: Panel,
    rows: Transitions,
    own: Parameters,
    options: Refit,
    bench: Workbench,
    mixture: Mixture | None,
) -> _Found:
    """Policy and theta in turn, until the policy is still; the model holds what was found."""
    choices = some = _choices(model, panel, panel.free, mixture)
    groups, rounds = own.groups, options.rounds
    theta = torch.zeros(len(groups), dtype=torch.float64, device=bench.device)
    if model.attention is not None:  # eta goes with the intercepts
        eta = model.attention.weight.detach().double()
        theta, groups = torch.cat([theta, eta]), torch.cat([groups, groups.new_zeros(len(eta))])
        rounds = max(rounds, attention.ROUNDS)
    if mixture is not None:
        rounds = max(rounds, ROUNDS)
    shrinks = model.config.reward.structure != "linear" or model.config.reward.select
    precision = theta.new_full((int(groups.max()) + 1,), choices.mass / PRIOR_ROWS if shrinks else FREE)
    precision[0] = FREE
    effective, changes = float(own.raw.shape[1]), list[float]()  # all of them, where none is shrunk
    for r in range(rounds):
        bench.tick("refit", r, rounds, float("nan"))
        sums = feature_sums(model, rows, own, refitted=r > 0)
        solution = evaluation.solve(sums, ridge=rows.ridge(of=sums.rows))
        weights = processes.agreed(solution.weights)
        logit = logit_of(model, weights, own, told=panel.tells_active)
        if shrinks:
            some = choices.at_most(EVIDENCE_ROWS)
            theta, precision, effective = evidence(logit, some, theta, precision, groups, EVIDENCE[min(r, 1)])
        else:
            theta, _ = maximised(logit, choices, theta, precision[groups])
        if mixture is not None:
            theta, choices = mixture.climb(logit, choices, theta, precision[groups])
        before = _sample_policy(model, rows, refitted=r > 0)
        store(model, theta, weights, own)
        moved = _sample_policy(model, rows, refitted=True) - before
        changes.append(float(processes.mean(moved.abs().mean(1))))
        if changes[-1] < STILL:
            break
    if some is not choices and mixture is None:  # precisions of a sample, weights of all
        some.cache.clear()
        theta, _ = maximised(logit, choices, theta, precision[groups])
        store(model, theta, weights, own)
    return _Found(theta, precision, precision[groups], effective, logit, solution, choices, changes)


@torch.no_grad()
def _form_gap(
    model: FittedModel, panel: Panel, logit: Logit, theta: Tensor, choices: Choices
) -> tuple[float, float | None]:
    """By how much the P step's network explains the choices better than theta[P], per choice, and its standard error:
    a paired comparison of models of which neither holds the other (Vuong 1989), by cluster."""
    rows, gap = choices.rows, -logit.log_likelihoods(theta, choices)
    for part, i in zip(gap.split(CHUNK), rows.split(CHUNK), strict=True):
        chosen = model.policy_network(panel.state[i], panel.menu[i]).gather(1, panel.action[i].unsqueeze(1))
        part += chosen.squeeze(1).double() * panel.weight[i].double()
    by_cluster = gap.new_zeros(int(panel.cluster.max()) + 1).index_add_(0, panel.cluster[rows], gap)
    there = torch.zeros_like(by_cluster, dtype=torch.bool).index_fill_(0, panel.cluster[rows], True)
    found = by_cluster[there]
    mass, number = choices.mass, processes.total(len(found))
    if number < 2:
        return processes.total(found.sum()) / mass, None
    return processes.total(found.sum()) / mass, float(processes.spread(found, correction=1)) * number**0.5 / mass


def _choices(model: FittedModel, panel: Panel, rows: Tensor, mixture: Mixture | None) -> Choices:
    """The free choices among ``rows``, bool [N]."""
    if mixture is not None:
        return mixture.choices(model, rows[: mixture.panel.n_rows])
    return Choices(model, panel, (panel.free & rows).nonzero().squeeze(1), {})


def feature_sums(model: FittedModel, rows: Transitions, own: Parameters, *, refitted: bool) -> evaluation.Sums:
    """The kernel's sums for what every raw feature that is used is worth from the next choice on, per action but the
    fixed one, and (last) the offset: g and alpha times the entropy; under the P step's policy, or the refit's. With
    inattention the columns before the last are how what follows moves with eta."""
    schema, alpha, width, used = model.schema, model.config.temperature, model.terms.width, own.used
    paid = [a for a in range(len(schema.actions)) if a != schema.base]

    def target(following: Tensor, phi: Tensor, log_pi: Tensor) -> Tensor:
        inertia = model.inertia_of(following)
        pi = bellman.seen_policy(log_pi, inertia).exp()
        known = schema.known_reward(following).double() * (1 if schema.anchor is None else pi[:, schema.anchor])
        rest = (known + alpha * bellman.received_entropy(log_pi, inertia=inertia)).unsqueeze(1)
        moved = [] if inertia is None else [attention.slope(model, following, log_pi)]
        if schema.anchor is not None:
            return torch.cat([*moved, rest], 1)
        reference = schema.reference(following, log_pi > -torch.inf).double()[:, paid]
        known_mix = (reference.unsqueeze(2) * phi[:, :width].unsqueeze(1)).flatten(1).index_select(1, used)
        return torch.cat([*moved, rest, known_mix], 1)

    chunks = kernel_rows(model, rows, partial(_log_policy, model, refitted=refitted), target)
    sums = evaluation.accumulate(chunks, actions=len(schema.actions), dealt=True)
    # what the features of the reward earn at the next choice is in the kernel's matrix: they are among the value's
    ahead = sums.ahead.unflatten(1, (len(schema.actions), -1))[:, paid, :width].flatten(1).index_select(1, used)
    rest = sums.rhs
    if schema.anchor is None:
        rest, known_mix = rest.split([rest.shape[1] - len(used), len(used)], 1)
        ahead = ahead - known_mix
    return replace(sums, rhs=torch.cat([ahead, rest], 1))


def _log_policy(model: FittedModel, state: Tensor, phi: Tensor | None = None, *, refitted: bool) -> Tensor:
    """log pi[N, A], float64; terminal states have an empty menu. ``phi``: the basis, if it is at hand."""
    menu = Unchanged(model.schema).menu(state, state[:, 0])
    if refitted:
        return model.log_policy_of(state, menu, phi).double()
    with torch.no_grad():
        log_pi: Tensor = model.policy_network(state, menu)
    return log_pi.double()


def _sample_policy(model: FittedModel, rows: Transitions, *, refitted: bool) -> Tensor:
    state = rows.next_state[:, 0][:CHUNK]
    return bellman.seen_policy(_log_policy(model, state, refitted=refitted), model.inertia_of(state)).exp()


def logit_of(model: FittedModel, weights: Tensor, own: Parameters, *, told: bool = False) -> Logit:
    """The logit of kernel weights[A, D, U + 1]; ``told``: whether the panel says who decided."""
    schema, width, used = model.schema, model.terms.width, own.used
    mapping, offset = weights[..., : len(used)] @ own.raw[used], weights[..., -1].clone()
    present = own.raw.view(-1, width, own.raw.shape[1])
    for b, a in enumerate(a for a in range(len(weights)) if a != schema.base):
        mapping[a, :width] += present[b]  # the present choice's own
    if model.attention is None:
        return Logit(mapping, offset, schema.anchor, model.config.temperature)
    mapping = torch.cat([mapping, weights[..., len(used) : -1]], 2)
    eta = model.attention.weight.detach().double()
    offset -= mapping[..., -len(eta) :] @ eta  # linear around eta as it is
    return attention.Inattentive(mapping, offset, schema.anchor, model.config.temperature, model.attention, told)


@torch.no_grad()
def store(model: FittedModel, theta: Tensor, weights: Tensor, own: Parameters) -> None:
    """Put theta[P] and the continuation it implies into the model, in raw features."""
    refit, size, used = model.refit, own.raw.shape[1], own.used
    assert refit is not None
    refit.theta[refit.paid] = own.by_action(theta[:size], len(refit.theta))
    moved = own.raw[used] @ theta[:size]
    if model.attention is not None:
        moved = torch.cat([moved, theta[size:] - model.attention.weight])
        model.attention.weight.copy_(theta[size:])
    refit.weights.copy_(weights[..., :-1] @ moved + weights[..., -1])


def _store_covariance(model: FittedModel, covariance: Tensor, own: Parameters) -> None:
    """Put the covariance of theta[P], and of the weights[B] of the types' shares or of eta if there are any, into the
    modules, in raw features."""
    refit, shares = model.refit, model.shares
    assert refit is not None
    raw, size = own.raw, own.raw.shape[1]
    refit.covariance.copy_(raw @ covariance[:size, :size] @ raw.T)
    if shares is not None:
        shares.covariance.copy_(torch.cat([covariance[size:, :size] @ raw.T, covariance[size:, size:]], 1))
    if model.attention is not None:
        model.attention.covariance.copy_(covariance[size:, size:])
