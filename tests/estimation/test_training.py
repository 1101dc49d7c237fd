"""The training loop: the same answer as a bare PyTorch loop, the best epoch kept, and what it leaves in TensorBoard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from irl.config import Step
from irl.data.batches import Batches
from irl.estimation.training import BATCHES_PER_STEP, Fitting, Workbench, train

ROWS, BATCH = 1030, 16  # 65 batches, the last one smaller: three steps of 32, 32 and 1
assert ROWS > 2 * BATCHES_PER_STEP * BATCH


class Line(Fitting):
    """Weighted least squares of a line; a batch is (x, y, weight)."""

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x, y, weight = batch
        return (self.network(x).squeeze(1) - y).square(), weight


def rows(n: int, *, seed: int, noise: float = 0.3, intercept: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(n, 1, generator=generator), 0.5 + torch.rand(n, generator=generator)
    return x, 2 * x.squeeze(1) + intercept + noise * torch.randn(n, generator=generator), weight


def line() -> nn.Linear:
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight), nn.init.zeros_(network.bias)
    return network


def bench(**options: object) -> Workbench:
    return Workbench(device=torch.device("cpu"), seed=0, **options)  # type: ignore[arg-type]


def sides(check: tuple[Tensor, ...]) -> tuple[Batches, Batches]:
    return Batches(rows(ROWS, seed=1), batch_size=BATCH, seed=3), Batches(check, batch_size=100, seed=None)


def test_it_does_what_a_bare_loop_does():
    options = Step(learning_rate=0.02, weight_decay=0.1, max_epochs=4, patience=4)
    check = rows(250, seed=2)  # three batches of different weight
    network, bare = line(), line()
    trained = train(Line(network, options), *sides(check), name="line", bench=bench())

    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.02, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    history, weights = [], []
    batches, _ = sides(check)
    for _ in range(4):
        for x, y, weight in batches:
            optimizer.zero_grad()
            (((bare(x).squeeze(1) - y).square() * weight).sum() / weight.sum()).backward()
            optimizer.step()
        schedule.step()
        x, y, weight = check
        with torch.no_grad():
            history.append(float(((bare(x).squeeze(1) - y).square() * weight).sum() / weight.sum()))
        weights.append([p.detach().clone() for p in bare.parameters()])

    assert trained.epochs == 4
    assert trained.history == pytest.approx(history, rel=1e-5)
    best = min(range(4), key=lambda e: history[e])
    assert trained.best_epoch == best and trained.held_out_loss == pytest.approx(history[best], rel=1e-5)
    for mine, theirs in zip(network.parameters(), weights[best], strict=True):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-5, atol=1e-6)


def contradicting() -> tuple[Tensor, ...]:
    """Held-out rows that the fit leads away from, once past intercept 0.3."""
    return rows(200, seed=2, intercept=0.3)


def test_the_best_epoch_is_restored_and_patience_ends_the_training():
    options = Step(learning_rate=0.005, weight_decay=0.0, max_epochs=40, patience=3)
    network, seen = line(), []
    trained = train(
        Line(network, options), *sides(contradicting()), name="line", bench=bench(tick=lambda *told: seen.append(told))
    )
    assert trained.best_epoch == min(range(trained.epochs), key=lambda e: trained.history[e])
    assert trained.epochs == trained.best_epoch + 1 + 3 < 40
    x, y, weight = contradicting()
    with torch.no_grad():
        losses = (network(x).squeeze(1) - y).square()
    assert float((losses * weight).sum() / weight.sum()) == pytest.approx(trained.held_out_loss, rel=1e-5)
    assert [told[:3] for told in seen[:2]] == [("line", 1, 40), ("line", 2, 40)]
    assert seen[-1] == ("line", 40, 40, trained.held_out_loss)
    assert not network.training


def test_the_moving_average_is_kept_where_it_is_better():
    """Steps so long that the weights never settle; held-out rows without noise."""
    options = Step(learning_rate=0.3, weight_decay=0.0, max_epochs=1, patience=8)
    x, y, weight = check = rows(250, seed=2, noise=0.0)
    network = line()
    averaged = train(Line(network, options, memory=65), *sides(check), name="line", bench=bench())
    raw = train(Line(line(), options), *sides(check), name="line", bench=bench())
    assert averaged.averaged and not raw.averaged
    assert averaged.held_out_loss < 0.5 * raw.held_out_loss
    with torch.no_grad():
        losses = (network(x).squeeze(1) - y).square()
    assert float((losses * weight).sum() / weight.sum()) == pytest.approx(averaged.held_out_loss, rel=1e-4)


def test_the_moving_average_by_hand():
    network = line()
    fitting = Line(network, Step(), memory=2)
    assert fitting.average is not None
    for value in (5.0, 1.0, 0.0):  # the first is copied; then 9/11 and 9/12 of the new
        nn.init.constant_(network.weight, value)
        fitting.average.update_parameters(network)
    expected = (5 * 2 / 11 + 9 / 11) * 3 / 12
    assert float(fitting.average.module.weight.detach()) == pytest.approx(expected)
    for _ in range(9):
        fitting.average.update_parameters(network)
    before = float(fitting.average.module.weight.detach())
    fitting.average.update_parameters(network)
    assert float(fitting.average.module.weight.detach()) == pytest.approx(
        before / 2
    )  # from now on half, the memory being 2


def test_the_average_of_a_fit_that_still_improves_is_not_kept():
    options = Step(learning_rate=0.002, weight_decay=0.0, max_epochs=3, patience=3)
    trained = train(Line(line(), options, memory=200), *sides(rows(100, seed=2, noise=0.0)), name="line", bench=bench())
    assert trained.best_epoch == 2 and not trained.averaged


def test_without_keeping_the_best_it_runs_to_the_end():
    options = Step(learning_rate=0.02, weight_decay=0.0, max_epochs=12, patience=1)
    network = line()
    trained = train(Line(network, options), *sides(contradicting()), name="line", bench=bench(), keep_best=False)
    assert trained.epochs == len(trained.history) == 12
    assert trained.held_out_loss == trained.history[-1] > min(trained.history)
    x, y, weight = contradicting()
    with torch.no_grad():
        losses = (network(x).squeeze(1) - y).square()
    assert float((losses * weight).sum() / weight.sum()) == pytest.approx(trained.history[-1], rel=1e-5)


def test_the_same_seed_gives_the_same_network():
    options = Step(learning_rate=0.02, max_epochs=2)
    found = []
    for _ in range(2):
        network = line()
        train(Line(network, options), *sides(rows(100, seed=2)), name="line", bench=bench())
        found.append([p.detach().clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_loss_that_is_not_finite_ends_the_training_with_a_remedy(keep_best):
    check = rows(100, seed=2)
    check[1][7] = float("nan")
    options, seen = Step(max_epochs=5), []
    with pytest.raises(FloatingPointError, match=r"line: .*not finite after epoch 1; lower estimation.line"):
        train(
            Line(line(), options),
            *sides(check),
            name="line",
            bench=bench(tick=lambda *told: seen.append(told)),
            keep_best=keep_best,
        )
    assert len(seen) == 1  # not five epochs of it


def logged(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    found.Reload()
    return found


def test_tensorboard_shows_losses_by_epoch_and_what_the_step_found(tmp_path):
    options = Step(learning_rate=0.1, weight_decay=0.0, max_epochs=3)
    place = bench(tensorboard=tmp_path)
    trained = train(Line(line(), options), *sides(rows(100, seed=2)), name="line", bench=place)
    place.record("line", {"slope": 2.0}, {"reward/a": torch.randn(50), "reward/none of it": torch.empty(0)})
    found = logged(tmp_path / "line")
    held_out = found.Scalars("held_out_loss")
    assert [e.step for e in held_out] == [0, 1, 2]
    assert [e.value for e in held_out] == pytest.approx(trained.history, rel=1e-5)
    train_loss = [e.value for e in found.Scalars("train_loss")]
    assert len(train_loss) == 3 and train_loss == sorted(train_loss, reverse=True)
    assert train_loss[-1] == pytest.approx(0.09, abs=0.02)  # the variance of the noise
    assert [e.value for e in found.Scalars("slope")] == [2.0]
    assert found.Tags()["histograms"] == ["reward/a"]
    assert found.Histograms("reward/a")[0].histogram_value.num == 50


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(Line(line(), Step(max_epochs=1)), *sides(rows(100, seed=2)), name="line", bench=bench())
    bench().record("line", {"slope": 2.0})
    assert not list(tmp_path.iterdir())
