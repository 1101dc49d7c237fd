"""Random numbers by place: the published hash, uniform, unrelated to each other, the same however asked for."""

from __future__ import annotations

import torch

from irl.counterfactual import streams as module
from irl.counterfactual.streams import Streams

CPU = torch.device("cpu")


def drawn(members: range, *, seed=0, periods=6, width=10):
    stream = Streams(seed, members, periods=periods, width=width, device=CPU)
    return torch.stack([stream(t) for t in range(periods)])  # [T, N, W]


def test_the_hash_is_splitmix64():
    """The first two numbers of the published generator at seed 0."""
    assert module._mixed(0) == 0xE220A8397B1DCDAF
    assert module._mixed(1) == module._mixed(1 + 2**64) != module._mixed(0)


def test_tensors_and_integers_are_hashed_alike():
    """The number of member 3, period 2, draws 4 and 5, worked out with Python's integers."""
    counter = 2 * 2048 + 2 << 32 | 3
    z = (counter * module.GOLDEN + module._mixed(7)) % 2**64
    z = (z ^ (z >> 30)) * module.FIRST % 2**64
    z = (z ^ (z >> 27)) * module.SECOND % 2**64
    z ^= z >> 31
    found = drawn(range(5), seed=7)[2, 3]
    assert found[4].item() == ((z >> 41) + 0.5) / 2**23
    assert found[5].item() == ((z >> 18) % 2**23 + 0.5) / 2**23


def test_they_do_not_depend_on_the_batch_the_width_or_the_periods():
    whole = drawn(range(3000))
    assert torch.equal(drawn(range(1024, 2048)), whole[:, 1024:2048])
    assert torch.equal(drawn(range(3000), width=3), whole[..., :3])
    assert torch.equal(drawn(range(3000), periods=2), whole[:2])
    assert not torch.equal(drawn(range(3000), seed=1), whole)


def test_they_are_uniform():
    for number in (drawn(range(20_000)), drawn(range(2**31, 2**31 + 20_000))):
        assert float(number.min()) > 0 and float(number.max()) < 1
        ordered = number.flatten().double().sort().values
        n = len(ordered)
        assert (ordered - (torch.arange(n) + 0.5) / n).abs().max() < 1.9 / n**0.5  # Kolmogorov, 99.9 %


def test_neighbours_are_unrelated():
    """Members, periods, draws, and seeds next to each other; of the numbers and of their low bits."""
    numbers, n = drawn(range(20_000)).double() - 0.5, 20_000
    for values in (numbers, (numbers * 2**12).remainder(1) - 0.5):
        one = values[0]
        pairs = [(one[:-1], one[1:]), (one[:-7, 0], one[7:, 0]), (values[0], values[1]), (one[:, :1], one[:, 1:])]
        pairs.append((one, drawn(range(n), seed=1)[0].double() - 0.5))
        for a, b in pairs:
            a, b = torch.broadcast_tensors(a, b)
            assert (12 * (a * b).mean()).abs() < 4 / a.numel() ** 0.5
