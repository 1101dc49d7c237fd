"""Networks in a folder: what comes back is what was written, covariances nearly so where they are kept by factors."""

from __future__ import annotations

import torch
from torch import nn

from irl import weights


class Network(nn.Module):
    def __init__(self, covariance: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("theta", torch.arange(3.0))
        self.register_buffer("covariance", covariance)


def test_a_covariance_is_kept_by_factors_to_the_part_that_is_asked(tmp_path):
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64)).Q
    spread = 2.0 ** -torch.arange(60, dtype=torch.float64)  # the first 10 have .999 of it
    covariance = q @ torch.diag(spread) @ q.T
    for kept, error in ((None, 0.0), (0.999, 3e-3)):
        weights.write(tmp_path / "m", {"net": Network(covariance)}, {"about": 1}, kept=kept)
        about, found = weights.read(tmp_path / "m")
        assert about["about"] == 1 and set(found["net"]) == {"theta", "covariance"}
        read = found["net"]["covariance"]
        assert torch.equal(found["net"]["theta"], torch.arange(3.0)) and read.dtype == torch.float64
        assert (read - covariance).abs().max() <= error
        assert read.trace() >= (kept or 1 - 1e-12) * covariance.trace() * (1 - 1e-3)
    assert weights.factor(covariance, 0.999).shape == (60, 10)
    assert weights.factor(torch.zeros(4, 4), 0.999).abs().max() == 0
