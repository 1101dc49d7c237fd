"""Random numbers that are a function of (seed, member, period, draw), the same on every device and in every order.

A counter-based generator (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011): the number of each
place is a hash of the place, so that nothing is stored, copied or drawn in turn, and cases share their numbers. The
hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014; Stafford's mix 13), in wrapping 64-bit integers; one hash
gives two numbers of 23 bits. Numbers of a draw do not depend on how many draws there are.

Limits: 2^32 members and 4,096 numbers per member and period.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
BITS = 23
"""Of a number: (k + 1/2) 2^-23 is exact in float32, and neither 0 nor 1."""


class Streams:
    """The numbers of a batch of members: ``streams(period)`` gives uniform[members, width] in (0, 1), stored [width,
    members]."""

    def __init__(self, seed: int, members: range, *, periods: int, width: int, device: torch.device) -> None:
        self.width, hashes = width, -(-width // 2)
        place = torch.arange(periods).unsqueeze(1) * 2048 + torch.arange(hashes)
        counter = (place * _signed(GOLDEN << 32) + _signed(_mixed(seed))).to(device)
        self._of_period = counter.unsqueeze(2)  # [T, hashes, 1]
        self._of_member = torch.arange(members.start, members.stop, device=device) * _signed(GOLDEN)

    def __call__(self, period: int) -> Tensor:
        z = self._of_period[period] + self._of_member
        z.bitwise_xor_(_shifted(z, 30)).mul_(_signed(FIRST))
        z.bitwise_xor_(_shifted(z, 27)).mul_(_signed(SECOND))
        z.bitwise_xor_(_shifted(z, 31))
        upper = _shifted(z, 64 - BITS)
        lower = _shifted(z, 64 - 2 * BITS).bitwise_and_((1 << BITS) - 1)
        uniform = torch.stack([upper, lower], 1).flatten(0, 1)[: self.width].float()
        return uniform.add_(0.5).mul_(0.5**BITS).T


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits with zeros coming in, which int64 does not do by itself."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mixed(seed: int) -> int:
    """The hash above of one integer, in Python."""
    z = (seed * GOLDEN + GOLDEN) % 2**64
    z = (z ^ (z >> 30)) * FIRST % 2**64
    z = (z ^ (z >> 27)) * SECOND % 2**64
    return z ^ (z >> 31)


def _signed(x: int) -> int:
    """The int64 of the same 64 bits."""
    x %= 2**64
    return x - 2**64 if x >= 2**63 else x
