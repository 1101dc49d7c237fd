"""Choice paths in numbers: shares by period, and how long members keep a choice and what they leave it for.

A *spell* is a run of consecutive periods in which a member takes one action. Its *age* in a period counts the periods
so far, that one included, and is known only where its beginning was seen: a spell that runs when a member's rows begin
(or after a gap) has none. Hazards are life-table ones,

    h_a(k) = members who, having taken a for exactly k periods, take another action next / all who could,

so that spells cut short by the end of the panel count for as long as they were seen, and no longer (Kaplan and Meier
1958). The hazard of leaving the anchor, by age, is that of rejoining by periods since leaving; ``switch`` counts moves
to another plan only. The length that h implies is restricted to K ages, E min(length, K + 1) = sum_k<=K prod_j<=k
(1 - h_a(j)).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
OLDEST = 12
"""Ages told apart; a spell that lasts longer counts at these only."""


@dataclass(frozen=True)
class Counts:
    """Of G groups (segments, and all together if several), T periods, A actions, K ages.

    chose : [G, T, A], members.
    at_risk : [G, A, K], member-periods in a spell of known age with a next choice to see.
    left, switched : [G, A, K], those followed by another action, and by another that is not the anchor.
    """

    chose: Floats
    at_risk: Floats
    left: Floats
    switched: Floats

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def rates(self) -> Rates:
        """The shares and hazards of these counts."""
        share = _ratio(self.chose, self.chose.sum(2, keepdims=True))
        left, switched = (_ratio(x.sum(2), self.at_risk.sum(2)) for x in (self.left, self.switched))
        by_age = (_ratio(x, self.at_risk) for x in (self.left, self.switched))
        leave, switch = (
            np.where(np.isnan(h), pooled[..., None], h) for h, pooled in zip(by_age, (left, switched), strict=True)
        )
        return Rates(share, leave, switch, left, switched)


@dataclass(frozen=True)
class Rates:
    """share [G, T, A]; hazards by age, leave and switch [G, A, K], at ages of nobody that over all ages, and over all
    ages, leaves and switches [G, A]. NaN where of nobody at all."""

    share: Floats
    leave: Floats
    switch: Floats
    leaves: Floats
    switches: Floats

    def length(self, known: Bools) -> Floats:
        """[G, A]: restricted mean length of a spell, in periods, by the ages before the first that is not
        known[G, A, K]; NaN without any."""
        known = np.cumprod(known, axis=2).astype(bool)
        lasting = np.cumprod(np.where(known, 1 - self.leave, 1.0), axis=2)
        return np.where(known[..., 0], 1 + np.where(known, lasting, 0.0).sum(2), np.nan)


def count(
    action: Ints, start: Ints, segment: Ints, *, segments: int, actions: int, anchor: int | None, first: int = 0
) -> Counts:
    """Counts of the choices from ``start`` on; what came before only tells how old spells are.

    Parameters
    ----------
    action : [M, T], -1 where a member is not there.
    start : [M], the first column that counts for a member.
    segment : [M].
    first : the first column of ``chose``.
    """
    group = np.broadcast_to(segment[:, None], action.shape)
    counts = (action >= 0) & (np.arange(action.shape[1]) >= start[:, None])
    shape = (segments, action.shape[1] - first, actions)
    chose = _tally(shape, (group[counts], np.nonzero(counts)[1] - first, action[counts]))
    age, before, after = _ages(action)[:, :-1], action[:, :-1], action[:, 1:]
    seen = counts[:, 1:] & (before >= 0) & (age > 0) & (age <= OLDEST)
    changed = seen & (after != before)
    switched = changed & (before != anchor) & (after != anchor)
    at_risk, left, moved = (
        _tally((segments, actions, OLDEST), (group[:, 1:][which], before[which], age[which] - 1))
        for which in (seen, changed, switched)
    )
    return Counts(*(_with_all(found) for found in (chose, at_risk, left, moved)))


def _ages(action: Ints) -> Ints:
    """age[M, T] of the spell that each choice belongs to; 0 where its beginning was not seen."""
    age = np.zeros_like(action)
    for t in range(1, action.shape[1]):
        before, now = action[:, t - 1], action[:, t]
        older = np.where(age[:, t - 1] > 0, age[:, t - 1] + 1, 0)
        age[:, t] = np.where((before >= 0) & (now >= 0), np.where(now != before, 1, older), 0)
    return age


def _tally(shape: tuple[int, ...], where: tuple[Ints, ...]) -> Floats:
    flat = np.ravel_multi_index(where, shape)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape).astype(float)


def _with_all(counts: Floats) -> Floats:
    return np.concatenate([counts, counts.sum(0, keepdims=True)]) if len(counts) > 1 else counts


def _ratio(part: Floats, whole: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(part / whole)
