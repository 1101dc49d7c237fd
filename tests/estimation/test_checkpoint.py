"""A training that is stopped at any epoch ends, resumed, at bitwise the same weights; what goes wrong is said."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from irl.config import Step
from irl.data.batches import Batches
from irl.estimation.training import Fitting, Trained, Workbench, train

OPTIONS = Step(learning_rate=0.05, weight_decay=0.1, max_epochs=6, patience=6)


class Stopped(Exception):
    """Stands for a process that dies."""


class Line(Fitting):
    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x, y = batch
        return (self.network(x).squeeze(1) - y).square(), torch.ones_like(y)


def fitted(folder, *, stop: int = 0, memory: int = 0, y: Tensor | None = None, **options) -> tuple[nn.Module, Trained]:
    """Train a small network, stopped in epoch ``stop`` (1, 2, ...; 0: not)."""

    def tick(name: str, epoch: int, of: int, loss: float) -> None:
        if epoch == stop:
            raise Stopped

    torch.manual_seed(0)
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    y = x.square().sum(1) if y is None else y
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    bench = Workbench(device=torch.device("cpu"), seed=0, tick=tick, checkpoints=folder, every=0.0)
    sides = Batches((x[:150], y[:150]), batch_size=16, seed=0), Batches((x[150:], y[150:]), batch_size=64, seed=None)
    step = Line(network, OPTIONS.model_copy(update=options), memory=memory)
    return network, train(step, *sides, name="line", bench=bench)


def without_time(trained: Trained) -> Trained:
    return dataclasses.replace(trained, seconds=0.0)


@pytest.mark.parametrize(("memory", "rate"), [(0, 0.05), (100, 1.0)])
def test_a_training_stopped_twice_ends_as_if_it_never_was(tmp_path, memory, rate):
    """Steps so long that it is the moving average which is kept, where there is one."""
    whole, told = fitted(None, memory=memory, learning_rate=rate)
    assert told.averaged == (memory > 0)
    for stop in (3, 5):
        with pytest.raises(Stopped):
            fitted(tmp_path, stop=stop, memory=memory, learning_rate=rate)
        assert [path.name for path in tmp_path.iterdir()] == ["line.ckpt"]
    again, told_again = fitted(tmp_path, stop=1, memory=memory, learning_rate=rate)  # epoch 1 is not made again
    assert without_time(told_again) == without_time(told)
    for mine, theirs in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("damage", ["cut short", "of another training"])
def test_what_cannot_be_gone_on_from_is_begun_again(tmp_path, damage):
    with pytest.raises(Stopped):
        fitted(tmp_path, stop=3, **({} if damage == "cut short" else {"max_epochs": 9}))
    path = tmp_path / "line.ckpt"
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
    whole, _ = fitted(None)
    again, _ = fitted(tmp_path)
    assert all(map(torch.equal, again.state_dict().values(), whole.state_dict().values()))


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"callbacks": Evil()}, tmp_path / "line.ckpt")
    fitted(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_nothing_is_stored_before_its_time(tmp_path):
    with pytest.raises(Stopped):
        torch.manual_seed(0)
        x = torch.randn(50, 2)

        def stop(name: str, epoch: int, of: int, loss: float) -> None:
            if epoch == 4:
                raise Stopped

        bench = Workbench(device=torch.device("cpu"), seed=0, tick=stop, checkpoints=tmp_path, every=60.0)
        sides = [Batches((x, x[:, 0]), batch_size=50, seed=seed) for seed in (0, None)]
        train(Line(nn.Linear(2, 1), OPTIONS), *sides, name="line", bench=bench)
    assert not list(tmp_path.iterdir())


def test_the_first_bad_batch_is_named_and_the_last_good_state_kept(tmp_path):
    y = torch.ones(200)
    y[7] = torch.nan
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    batch = int((order == 7).nonzero()) // 16 + 1
    with pytest.raises(FloatingPointError, match=rf"line: .* not finite from batch {batch} of epoch 1 on; lower "):
        fitted(tmp_path, y=y)
    assert not list(tmp_path.iterdir())
    with pytest.raises(Stopped):
        fitted(tmp_path, stop=3)
    good = (tmp_path / "line.ckpt").read_bytes()
    with pytest.raises(FloatingPointError, match="epoch 3"):
        fitted(tmp_path, y=y)
    assert (tmp_path / "line.ckpt").read_bytes() == good


def test_a_loss_that_explodes_ends_the_training():
    with pytest.raises(FloatingPointError, match=r"the held-out loss is .* after epoch 1, that of the first batch was"):
        fitted(None, learning_rate=1e4, weight_decay=0.0, max_epochs=40, patience=40)
