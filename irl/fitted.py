"""The fitted model: what a study leaves, and what every later question starts from.

A :class:`FittedModel` holds the study's options, the schema of its state, the networks of the policy, the anchor's
value, the reward and the dynamics, and what the refit made of them, if there was one. It answers for any data frame
that has the state columns, in any row order, in the units of the panel. ``save`` writes a folder of numbers and names
(safetensors and JSON, no pickles), ``load`` reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from irl import bellman, runs, weights
from irl.attention import AttentionLogit
from irl.config import Config, InputError, nearest, validated
from irl.crossings import Crossings
from irl.data.encode import factorized
from irl.data.panel import Panel, first_rows, of_type, panel_from_frame
from irl.data.schema import StateSchema
from irl.declared import TYPE
from irl.dynamics import TransitionModel
from irl.networks import AnchorValueNetwork, LinearTerms, PolicyNetwork, RewardNetwork, TypeShares
from irl.refitted import Refitted

Z = 1.959964
"""Standard errors on either side of a 95 % interval: the 97.5 % quantile of the normal distribution."""
CHUNK = 16384
"""Rows whose features are held at once."""
Answer = TypeVar("Answer", pd.DataFrame, pd.Series)


@dataclass(frozen=True)
class FittedModel:
    """The recovered rewards of a study, and what is needed to simulate from them.

    Rewards and values are in units of the logit shocks times the temperature. The anchor's reward (the mean under the
    reference policy) is the known g(s), which scenarios do not change: it is that of the menu as it is.

    With hidden types (``types``), a frame may say by a column ``type`` (1, 2, ...) of which type each row is. Without
    it, reward, policy and value are means over the types, weighted by :meth:`type_probabilities`.
    """

    config: Config
    schema: StateSchema
    policy_network: PolicyNetwork
    anchor_network: AnchorValueNetwork
    reward_network: RewardNetwork
    dynamics: TransitionModel
    terms: Crossings | LinearTerms
    crossings: Crossings | None
    refit: Refitted | None = None
    shares: TypeShares | None = None
    attention: AttentionLogit | None = None

    def reward(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Reward of every action: index and row order of ``frame``, columns in the order of ``actions``.

        NaN where the action is not available, and where nothing is chosen (one action only, or a terminal state).

        Raises
        ------
        InputError
            If a state column (or the anchor's reward column) is missing or cannot be read.
        """
        if self._typeless(frame):
            return self._mean_over_types(self.reward, frame)
        state, menu = self._state_menu(frame)
        free = free_rows(self.schema, state)
        reward = self.reward_of(state, self.anchor_reward(frame))
        return self._frame(reward.masked_fill(~(menu & free.unsqueeze(1)), torch.nan), frame)

    def standard_error(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Standard error of the reward of every action, shaped as :meth:`reward`; 0 for an anchor action: it is known.

        Clustered by member; conditional on what :mod:`irl.estimation.inference` says.

        Raises
        ------
        InputError
            If the model has none (``estimation.refit``), or as :meth:`reward`; with hidden types, if the frame does not
            say which.
        """
        state, menu = self._state_menu(frame)
        reference = self.schema.reference(state, menu)
        if self.refit is None or not self.has_standard_errors:
            raise InputError("this model has no standard errors: train with `estimation.refit.standard_errors: true`")
        menu = menu & free_rows(self.schema, state).unsqueeze(1)
        error = self.refit.standard_error(self.terms(state), reference)
        return self._frame(error.masked_fill(~menu, torch.nan), frame)

    @property
    def has_standard_errors(self) -> bool:
        """Whether the refit carries the covariance of its parameters."""
        return self.refit is not None and bool((self.refit.covariance != 0).any())

    def policy(self, frame: pd.DataFrame, *, decided: bool = False) -> pd.DataFrame:
        """Choice probability of every action, shaped as :meth:`reward`; 0 where not available, rows sum to 1.

        In a terminal state nothing is chosen: all are 0. With inattention, of what happens; ``decided``: of what is
        chosen by those who decide.
        """
        if self._typeless(frame):
            return self._mean_over_types(self.policy, frame)
        state, menu = self._state_menu(frame)
        menu = menu & ~self.schema.is_terminal(state).unsqueeze(1)
        log_pi = self.log_policy_of(state, menu) if decided else self.seen_policy_of(state, menu)
        return self._frame(log_pi.exp(), frame)

    def attention_probability(self, frame: pd.DataFrame) -> pd.Series:
        """Probability that there is a decision in every row, ``attention``; 1 where no default is available."""
        state, menu = self._state_menu(frame)
        inertia = self.inertia_of(state)
        found = torch.ones(len(menu)) if inertia is None else inertia.within(menu).cpu()
        return pd.Series(found.double().numpy(), index=frame.index, name="attention")

    def value(self, frame: pd.DataFrame) -> pd.Series:
        """Soft value V(s) of every row (with inattention W(s), before it is known whether there is a decision); 0 in
        terminal states, NaN where nothing is chosen.

        Of the refit, alpha log sum exp(Q(s,.)/alpha); without it, that of the Q and P steps. Levels of values depend on
        the anchor's reward and are never identified from behaviour.
        """
        if self._typeless(frame):
            return self._mean_over_types(self.value, frame).rename("value")
        value = self.value_of(self.schema.encode(frame).to(self.device), self.anchor_reward(frame))
        return pd.Series(value.double().cpu().numpy(), index=frame.index, name="value")

    @torch.no_grad()
    def value_of(self, state: Tensor, anchor_reward: Tensor | None = None) -> Tensor:
        """:meth:`value` [N] of state[N, F]; ``anchor_reward[N]`` is g(s), by default as the schema says."""
        menu = self.schema.menu(state)
        if self.refit:
            q = self.reward_of(state, anchor_reward) + self.refit.continuation(self.basis(state))
            value = bellman.soft_value(q, menu, self.config.temperature)
            value = bellman.ex_ante_value(value, q, menu, self.inertia_of(state))
        else:
            known = self.schema.known_reward(state) if anchor_reward is None else anchor_reward
            reference = self.schema.reference(state, menu)
            log_pi = bellman.reference_log_policy(self.policy_network(state, menu), reference)
            w = self.anchor_network(state, reference, known)
            value = bellman.value_from_reference(w, log_pi, self.config.temperature)
        value = value.masked_fill(~free_rows(self.schema, state), torch.nan)
        return value.masked_fill(self.schema.is_terminal(state), 0.0)

    def type_probabilities(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Probability of every hidden type: index and row order of ``frame``, columns 1, 2, ...; rows sum to 1.

        Of a panel (with the member, period and action columns): the posterior given all that the row's member chose in
        it, so that a choice is predicted in hindsight. Of other frames each row counts as a member's first: the share
        of the types given its state. The errors are those of :meth:`reward`; of a panel, of its checks besides.
        """
        data = self.config.data
        if self.shares is not None and all(name in frame.columns for name in (data.member, data.period, data.action)):
            codes = factorized(frame[data.member])[0]
            member = pd.Series(codes, index=frame.index).where(codes >= 0)
            coded = frame.assign(**{data.member: member}).assign(**{TYPE: 1})
            panel = panel_from_frame(coded, self.config, schema=self.schema)
            probabilities = self.posterior(panel.to(self.device))[torch.from_numpy(codes).to(self.device)]
        else:
            state = self.schema.encode(frame if self.shares is None else frame.assign(**{TYPE: 1}))
            probabilities = self.log_shares(state.to(self.device)).exp()
        labels = [str(k + 1) for k in range(self.schema.types)]
        return pd.DataFrame(probabilities.cpu().numpy(), index=frame.index, columns=labels)

    def with_types(self, frame: pd.DataFrame, *, seed: int) -> pd.DataFrame:
        """``frame`` with a column ``type`` in which each member (of a frame that is no panel, each row) has a type
        drawn by :meth:`type_probabilities`; the frame itself where there are no hidden types, or it says which."""
        if not self._typeless(frame):
            return frame
        probabilities = self.type_probabilities(frame).to_numpy()
        member = factorized(frame[self.config.data.member])[0] if self.config.data.member in frame.columns else None
        uniform = torch.rand(len(frame), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
        uniform = uniform if member is None else uniform[member]
        drawn = (uniform[:, None] > probabilities.cumsum(1)[:, :-1]).sum(1)
        return frame.assign(**{TYPE: drawn + 1})

    @torch.no_grad()
    def posterior(self, panel: Panel) -> Tensor:
        """P(type | all choices)[M, K] of the members of a panel, whatever type it says they are of; float64."""
        if self.shares is None:
            return torch.ones(panel.n_members, 1, dtype=torch.float64, device=self.device)
        joint = self.log_shares(panel.state[first_rows(panel.member)]) + self.log_moves(panel)
        for k in range(self.schema.types):
            for i in panel.free.nonzero().squeeze(1).split(CHUNK):
                log_pi = self.log_policy_of(of_type(panel.state[i], k), panel.menu[i])
                chosen = log_pi.gather(1, panel.action[i].unsqueeze(1)).squeeze(1)
                joint[:, k].index_add_(0, panel.member[i], chosen.double())
        return joint.softmax(1)

    @torch.no_grad()
    def log_moves(self, panel: Panel) -> Tensor:
        """log P[M, K] of all moves of members' states given their choices, by type, float64; 0 if types move alike."""
        found = torch.zeros(panel.n_members, self.schema.types, dtype=torch.float64, device=self.device)
        if self.schema.columns[-1].hidden != "all":
            return found
        for k in range(self.schema.types):
            for i in (panel.next_row >= 0).nonzero().squeeze(1).split(CHUNK):
                pair = of_type(panel.state[i], k), panel.action[i], of_type(panel.state[panel.next_row[i]], k)
                found[:, k].index_add_(0, panel.member[i], self.dynamics.log_prob(*pair).double())
        return found

    @torch.no_grad()
    def log_shares(self, state: Tensor) -> Tensor:
        """log P(type | first state)[N, K] of state[N, F]; float64."""
        if self.shares is None:
            return torch.zeros(len(state), 1, dtype=torch.float64, device=state.device)
        found: Tensor = self.shares(state)
        return found

    def _typeless(self, frame: pd.DataFrame) -> bool:
        return self.shares is not None and TYPE not in frame.columns

    def _mean_over_types(self, answer: Callable[[pd.DataFrame], Answer], frame: pd.DataFrame) -> Answer:
        weight = self.type_probabilities(frame)
        total, *others = (answer(frame.assign(**{TYPE: str(label)})).mul(weight[label], axis=0) for label in weight)
        for part in others:
            total = total + part
        return total

    def refuse_attention(self, what: str) -> None:
        """InputError if members do not always decide, of which ``what`` knows nothing."""
        if self.attention is not None:
            raise InputError(f"{what} cannot be asked with `attention` yet: train the study without it to ask")

    @torch.no_grad()
    def reward_of(self, state: Tensor, anchor_reward: Tensor | None = None) -> Tensor:
        """r[N, A] of state[N, F]; ``anchor_reward[N]`` is g(s), by default as the schema says."""
        known = self.schema.known_reward(state) if anchor_reward is None else anchor_reward
        reference = self.schema.reference(state, self.schema.menu(state))
        if self.refit is None:
            reward: Tensor = self.reward_network(state, known, reference)
            return reward
        return self.refit.reward(self.terms(state), known, reference)

    @property
    def reward_weights(self) -> Tensor | None:
        """[K, D], of the linear functions of the basis that the reward is made of (:meth:`reward_from`); None where it
        is made of something else."""
        if self.refit is None:
            return None
        missing = self.refit.weights.shape[1] - self.refit.theta.shape[1]
        return nn.functional.pad(self.refit.theta, (0, missing))

    @torch.no_grad()
    def reward_from(self, parts: Tensor, state: Tensor) -> Tensor:
        """r[N, A] of parts[N, K], the basis at state[N, F] times ``reward_weights``."""
        assert self.refit is not None
        return self.refit.reward_of_utility(parts, self.schema.known_reward(state), self.schema.reference(state))

    @torch.no_grad()
    def log_policy_of(self, state: Tensor, menu: Tensor, phi: Tensor | None = None) -> Tensor:
        """log pi[N, A] of who decides, of menu[N, A]: the refit's (``phi``: the basis, if at hand) or the P step's."""
        if self.refit is None:
            log_pi: Tensor = self.policy_network(state, menu)
            return log_pi
        phi = self.basis(state) if phi is None else phi
        known, reference = self.schema.known_reward(state), self.schema.reference(state, self.schema.menu(state))
        q = self.refit.reward(phi[:, : self.terms.width], known, reference) + self.refit.continuation(phi)
        return bellman.log_policy(q, menu, self.config.temperature)

    @torch.no_grad()
    def inertia_of(self, state: Tensor) -> bellman.Inertia | None:
        """How likely state[N, F] is to pass without a decision; None where everything is decided."""
        return None if self.attention is None else self.attention.inertia(state)

    def seen_policy_of(self, state: Tensor, menu: Tensor) -> Tensor:
        """log pi~[N, A] of what happens, decided or not; :meth:`log_policy_of` where everything is decided."""
        return bellman.seen_policy(self.log_policy_of(state, menu), self.inertia_of(state))

    @torch.no_grad()
    def basis(self, state: Tensor) -> Tensor:
        """phi[N, D], first column 1: what values are linear in: the terms of the reward, the crossings of all columns
        (unless these are the terms), and the features of the three networks."""
        trunks = (self.policy_network.trunk, self.anchor_network.trunk, self.reward_network.trunk)
        crossed = () if self.crossings is None else (self.crossings(state)[:, 1:],)
        return torch.cat([self.terms(state), *crossed, *(trunk(state) for trunk in trunks)], 1)

    def anchor_reward(self, frame: pd.DataFrame) -> Tensor:
        """g(s)[N] of the rows of ``frame``: the declared number or column."""
        known = self.schema.anchor_reward
        if not isinstance(known, str):
            return torch.full((len(frame),), float(known), device=self.device)
        if known not in frame.columns:
            raise InputError(f"the anchor's reward column {known!r} is missing{nearest(known, frame.columns)}")
        values = pd.to_numeric(frame[known], errors="coerce").to_numpy(dtype=np.float32, copy=True)
        if not np.isfinite(values).all():
            raise InputError(f"the anchor's reward column {known!r} has values that are not finite numbers")
        return torch.from_numpy(values).to(self.device)

    @property
    def device(self) -> torch.device:
        return self.anchor_network.head.device

    def to(self, device: torch.device | str) -> FittedModel:
        """The same model with its networks moved to ``device`` (in place)."""
        for network in (*self._networks().values(), self.terms, self.crossings):
            if network is not None:
                network.to(device)
        return self

    def save(self, folder: str | Path, *, kept: float | None = None) -> None:
        """Write the model to ``folder`` (replaced if it is there); ``kept``: see :func:`irl.weights.write`."""
        about = {"config": self.config.model_dump(mode="json"), "schema": self.schema.to_json()}
        weights.write(folder, self._networks(), about, kept=kept)

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module | None] = {
            "policy": self.policy_network,
            "anchor_q": self.anchor_network,
            "reward": self.reward_network,
            "dynamics": self.dynamics,
            "refit": self.refit,
            "shares": self.shares,
            "attention": self.attention,
        }
        return {name: network for name, network in networks.items() if network is not None}

    def _state_menu(self, frame: pd.DataFrame) -> tuple[Tensor, Tensor]:
        return (state := self.schema.encode(frame).to(self.device)), self.schema.menu(state)

    def _frame(self, values: Tensor, frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(values.double().cpu().numpy(), index=frame.index, columns=list(self.schema.actions))


def free_rows(schema: StateSchema, state: Tensor) -> Tensor:
    """bool[N]: a choice is made there: two or more actions, not terminal."""
    return (schema.menu(state).sum(1) > 1) & ~schema.is_terminal(state)


def new_networks(config: Config, schema: StateSchema) -> FittedModel:
    """A model with untrained networks of the configured sizes."""
    e, form = config.estimation, config.reward
    terms: Crossings | LinearTerms
    columns = (*form.columns, *schema.hidden) if form.columns else ()
    if schema.shifters and not form.columns:
        columns = tuple(name for name in schema.names if name not in schema.shifters)
    if form.structure == "linear":
        terms = LinearTerms(schema, columns)
    else:
        terms = Crossings(schema, columns, alone=form.benefits if form.structure == "additive" else ())
    plain = form.structure == "full" and not form.columns  # then only what the shifters have a part in is missing
    of = schema.shifters if plain else ()
    crossings = None if plain and not of else Crossings(schema, of=of, beyond=terms.names)
    model = FittedModel(
        config=config,
        schema=schema,
        policy_network=PolicyNetwork(schema, e.policy.hidden),
        anchor_network=AnchorValueNetwork(schema, e.anchor_q.hidden),
        reward_network=RewardNetwork(schema, e.reward.hidden),
        dynamics=TransitionModel(schema, e.dynamics.hidden),
        terms=terms,
        crossings=crossings,
        shares=TypeShares(schema, (len(schema.actions) - 1) * terms.width) if schema.hidden else None,
        attention=AttentionLogit(schema, config.attention) if config.attention else None,
    )
    if not e.refit.rounds:
        return model
    if not schema.knows_anchor_reward or config.data.duration is not None:
        if config.reward.shaped:
            raise InputError(
                "reward: its form is the refit's, which needs an anchor reward that is a number or a state column, and "
                "no `data.duration`; leave out `reward`"
            )
        return model
    width = model.basis(torch.zeros(1, len(schema.columns))).shape[1]
    return replace(model, refit=Refitted(schema.anchor, len(schema.actions), model.terms.width, width))


def load(run: str | Path, *, device: torch.device | str = "cpu") -> FittedModel:
    """The fitted model of a finished run folder.

    Raises
    ------
    InputError
        If the run is missing or unfinished, or its model folder is damaged, altered or of another format version.
    """
    return load_model(runs.complete_run(run) / "model", device=device)


def load_model(folder: str | Path, *, device: torch.device | str = "cpu") -> FittedModel:
    """The model in a model folder; nothing is unpickled. Errors as in :func:`load`."""
    folder = Path(folder)
    about, found = weights.read(folder)
    try:
        config = validated(Config, about["config"], str(folder / "model.json"))
        model = new_networks(config, StateSchema.from_json(about["schema"]))
        for name, network in model._networks().items():
            network.load_state_dict(found.get(name, {}))
            network.eval()
    except (KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise InputError(weights.damaged(folder, error)) from None
    return model.to(device)
