"""Union membership (wagepan): what last year's membership does to this year's, with one type of men and with two.

chance: by how much the chance of being a member rises if one was last year, mean over the men and years as they are;
reward: the same of the reward of membership, in units of the logit shock. With types each man's are weighted by what he
chose, and shares of the types depend on the first state observed (Wooldridge 2005). Vella & Verbeek (1998) find that
the effect falls by about half once unobserved differences and initial conditions are allowed for.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from real_parts.estimated import estimated, study

from irl.data.union import union_membership
from irl.fitted import FittedModel

TITLE = "545 men, 1981-87: effect of last year's membership"
SHOWN = {"chance": 3, "reward": 2, "log-likelihood": 4}
SEEDED = False


def effects(model: FittedModel, frame: pd.DataFrame) -> dict[str, float]:
    shares = model.type_probabilities(frame)
    states = frame.drop(columns=["nr", "year", "choice"])
    totals = {"chance": 0.0, "reward": 0.0}
    for label in shares:
        weight = shares[label].to_numpy()
        of_type = states.assign(type=label) if model.shares is not None else states
        union, none = (of_type.assign(last_year=last) for last in ("union", "none"))
        for name, answer in (("chance", model.policy), ("reward", model.reward)):
            difference = answer(union)["union"].to_numpy() - answer(none)["union"].to_numpy()
            totals[name] += float(np.mean(weight * difference))
    return totals


def with_types(number: int, seed: int) -> dict[str, float]:
    frame = union_membership()
    config = study("union_membership", f"seed={seed}", f"types={number}", "estimation.refit.standard_errors=false")
    model, metrics, took = estimated(config, frame)
    return {**effects(model, frame), "log-likelihood": metrics["refit"]["log_likelihood"], **took}


JOBS = {"one type": lambda seed: with_types(1, seed), "two types": lambda seed: with_types(2, seed)}
