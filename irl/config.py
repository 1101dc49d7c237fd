"""Every option of a study, as frozen sections that refuse what they do not know.

A study is one YAML file (no inheritance, no class paths). ``load_config`` reads it, applies
``key.path=value`` overrides and returns a :class:`Config`; every problem of the file is reported in one
:class:`InputError`, each with the place where it stands and, for a misspelt key, the nearest name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from irl.declared import Anchor, Attention, Condition, Data, Money, Reward, Types
from irl.sections import InputError, Section, nearest, unknown, validated

__all__ = ["Config", "InputError", "Section", "load_config", "nearest", "read_yaml", "unknown", "validated"]


class Step(Section):
    """How one network is trained."""

    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (64, 64)
    learning_rate: float = Field(5e-3, gt=0)
    weight_decay: float = Field(0.3, ge=0, description="decoupled (AdamW): a share of learning_rate per step")
    batch_size: int = Field(2048, gt=0)
    max_epochs: int = Field(30, gt=0)
    patience: int = Field(8, gt=0, description="epochs without a better held-out loss before stopping")


class AnchorQStep(Step):
    """The Q step: trunk by gradient, last layer by the kernel, alternately (`lstd`), or both by gradient (`fqi`)."""

    solver: Literal["lstd", "fqi"] = "lstd"
    rounds: int = Field(2, gt=0, description="trunk refreshes (lstd) or fitted iterations (fqi)")
    max_epochs: int = Field(8, gt=0, description="epochs per round")
    ridge: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="per row, on standardised features; auto: chosen by held-out members"
    )


class Refit(Section):
    """The likelihood refit of the reward: rounds of evaluating its features under the policy, then maximising."""

    rounds: int = Field(2, ge=0, description="policy evaluations; 0: no refit, the reward is the R step's")
    rows: int = Field(10_000, gt=0, description="states from which what follows is drawn, at most")
    standard_errors: bool = Field(True, description="whether the covariance of the reward is estimated")


class Estimation(Section):
    """The fits of a study, and the share of members held out to stop those by gradient."""

    validation: float = Field(0.2, gt=0, lt=0.9, description="share of members held out")
    folds: int = Field(
        2, ge=1, description="parts of the members for the Q step's orthogonal correction; 1: no correction"
    )
    checkpoint_seconds: float = Field(
        300.0, ge=0, description="work after which a training or a simulation is stored, to go on from if stopped"
    )
    policy: Step = Step()
    anchor_q: AnchorQStep = AnchorQStep()
    reward: Step = Step()
    dynamics: Step = Step()
    refit: Refit = Refit()
    falsification: bool = Field(
        False, description="whether training ends with the tests of scripts/falsify.py (a fourth of its time or so)"
    )


class Market(Section):
    """The simulated market (`scripts/simulate.py`): how many members, how long, and how unlike the model they are."""

    members: int = Field(4000, gt=0)
    periods: int = Field(36, gt=1)
    types: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1.0,),
        min_length=1,
        description="hidden types, equally many: each values every benefit this many times as much",
    )
    commitment: bool = Field(False, description="an annual contract cannot be left")
    attention: float = Field(1.0, gt=0, le=1, description="probability that a member decides in a month; else renewal")
    reminded: float = Field(0.0, ge=0, le=1, description="probability of a reminder (column `reminded`)")
    attention_reminded: float = Field(1.0, gt=0, le=1, description="probability that a reminded member decides")
    nest: float = Field(0.0, ge=0, lt=1, description="part of the taste shocks that the two plans share")
    chosen_use: bool = Field(False, description="a type that values benefits more uses them more, too")
    entry: Literal["everyone", "stock"] = Field(
        "everyone", description="who is in the panel: everybody, or those who are members when it begins"
    )
    shocks: float = Field(
        0.0, ge=0, description="taste for membership that comes and goes (column `mood`): its range, in reward units"
    )


class Config(Section):
    """One study."""

    data: Data
    anchor: Anchor
    reward: Reward = Reward()
    money: Money | None = Field(None, description="prices and costs, for revenue, margin and surplus in money")
    discount: float = Field(gt=0, lt=1, description="per period")
    temperature: float = Field(1.0, gt=0, description="scale of the logit shocks, in reward units")
    types: Annotated[Types, BeforeValidator(lambda n: {"number": n} if isinstance(n, int) else n)] = Types()
    attention: Attention | None = Field(None, description="if periods may pass without a decision")
    seed: int = Field(0, ge=0)
    estimation: Estimation = Estimation()
    market: Market | None = Field(None, description="only for studies on the simulated market")

    @property
    def defaults(self) -> dict[str, Condition]:
        """What happens without a decision: action -> condition on the state; empty where everything is decided."""
        return {} if self.attention is None else self.attention.default

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        problems = self.anchor.problems(self.data) + (self.money.problems(self.data) if self.money else [])
        problems += self.reward.problems(self.data)
        if self.reward.shaped and not self.estimation.refit.rounds:
            problems.append("reward: its form is the refit's: `estimation.refit.rounds` must be at least 1")
        rounds = self.estimation.refit.rounds
        problems += self.types.problems(state=self.data.state, refitted=rounds > 0, duration=self.data.duration)
        if self.attention is not None:
            problems += self.attention.problems(self.data, self.reward, self.types.number, refitted=rounds > 0)
        elif self.data.active is not None:
            problems.append("data.active: say by `attention.default` what happens where no decision is made")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class _Loader(yaml.SafeLoader):
    """As ``yaml.safe_load``, but a key that a mapping gives twice is refused."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, lines = super().compose_mapping_node(anchor), dict[tuple[str, Any], int]()
        for key, _ in node.value:
            line, first = key.start_mark.line + 1, lines.get((key.tag, str(key.value)))
            if first is not None:
                raise yaml.YAMLError(f"the key {key.value!r} of line {line} is already in line {first}: keep one")
            lines[key.tag, str(key.value)] = line
        return node


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a study's YAML file and apply ``key.path=value`` overrides (values are YAML).

    Raises
    ------
    InputError
        If the file is missing or not YAML, an override is malformed, or any option is unknown or invalid.
    """
    return validated(Config, read_yaml(path, overrides), str(path))


def read_yaml(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, with overrides applied; InputError if there is none."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of options at the top level")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(f"override {override!r}: write it as key.path=value")
        *parents, last = key.split(".")
        place = content
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise InputError(f"override {override!r}: {name!r} is not a section")
        try:
            place[last] = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError:
            raise InputError(f"override {override!r}: the value is not valid YAML") from None
    return content
