"""The weights with their formulas are all there is to a model: a reader in numpy, by what ``schema.json`` says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from safetensors.numpy import load_file

from irl.export import export

SPEC = importlib.util.spec_from_file_location("made", Path(__file__).with_name("test_export.py"))
assert SPEC is not None and SPEC.loader is not None
made = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(made)


class Reader:
    """Choices and transitions of state[N, F], an anchor action with a number for its reward, a refit."""

    def __init__(self, folder: Path) -> None:
        self.w = load_file(folder / "weights.safetensors")
        self.about = json.loads((folder / "schema.json").read_text("utf-8"))
        self.columns = self.about["state"]

    def part(self, name: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(f"{name}."): value for key, value in self.w.items() if key.startswith(f"{name}.")}

    def features(self, name: str, s: np.ndarray) -> np.ndarray:
        w, ones = self.part(name), np.ones((len(s), 1), np.float32)
        raw = s[:, w["column"]]
        if "worth" in w:
            worth = np.stack(
                [w["worth"][d][raw[:, d].astype(int) % w["worth"].shape[1]] for d in range(raw.shape[1])], 1
            )
            return np.hstack([ones, np.where(w["counted"], raw, worth)])
        z = (raw - w["centre"]) / w["scale"]
        z = np.where(np.isfinite(w["knot"]), np.maximum(z - w["knot"], 0), z)
        x = np.hstack([ones, np.where(w["code"] >= 0, raw == w["code"], z)])
        return np.prod([x[:, factor] for factor in w["factors"]], axis=0)

    def encoder(self, name: str, s: np.ndarray) -> np.ndarray:
        w = self.part(f"{name}.encoder")
        return np.hstack(
            [s[:, w["slot_column"]] == w["slot_code"], (s[:, w["scalar_column"]] - w["centre"]) / w["scale"]]
        )

    def layers(self, name: str, h: np.ndarray) -> np.ndarray:
        w = self.part(name)
        for i in sorted({int(key.partition(".")[0]) for key in w}):
            h = h @ w[f"{i}.weight"].T + w[f"{i}.bias"]
            h = h / (1 + np.exp(-h))
        return h

    def menu(self, s: np.ndarray) -> np.ndarray:
        def holds(condition: dict[str, list[str]]) -> np.ndarray:
            where = np.ones(len(s), bool)
            for name, labels in condition.items():
                f = [c["name"] for c in self.columns].index(name)
                where &= np.isin(s[:, f], [self.columns[f]["labels"].index(label) for label in labels])
            return where

        menu = np.ones((len(s), len(self.about["actions"])), bool)
        for action, condition in self.about["available"]:
            menu[:, action] = holds(condition)
        return menu & ~holds(self.about["terminal"])[:, None]

    def choices(self, s: np.ndarray) -> dict[str, np.ndarray]:
        terms, alpha, menu = self.features("terms", s), self.about["temperature"], self.menu(s)
        others = [self.features("crossings", s)[:, 1:]] if self.part("crossings") else []
        names = [f"{name}.trunk" for name in ("policy_network", "anchor_network", "reward_network")]
        trunks = [self.layers(f"{name}.layers", self.encoder(name, s)) for name in names]
        phi = np.hstack([terms, *others, *trunks])
        reward = terms.astype(float) @ self.w["refit.theta"].T
        reward[:, self.about["actions"].index(self.about["anchor"]["action"])] = self.about["anchor"]["reward"]
        q = np.where(menu, reward + phi.astype(float) @ self.w["refit.weights"].T, -np.inf)
        free = menu.sum(1, keepdims=True) > 1
        with np.errstate(divide="ignore", invalid="ignore"):
            value = alpha * np.log(np.exp(q / alpha).sum(1, keepdims=True))
            policy = np.where(menu, np.exp((q - value) / alpha), 0)
        value = np.where(free, value, np.where(menu.any(1, keepdims=True), np.nan, 0))
        return {"reward": np.where(menu & free, reward, np.nan), "policy": policy, "value": value[:, 0]}

    def transition(self, s: np.ndarray, action: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        w, following, names = self.part("dynamics"), s.copy(), [c["name"] for c in self.columns]
        drawn = [names.index(name) for name in self.about["uniform"]]
        entry = (s @ w["strides"].T).astype(int) + action[:, None]
        h = np.hstack([self.encoder("dynamics", s), np.eye(len(self.about["actions"]))[action]])
        heads = self.layers("dynamics.trunk", h) @ w["heads.weight"].T + w["heads.bias"]
        sequence, at, seen = w["sequence"] * w["earlier"], 0, 0
        for f, c in enumerate(self.columns):
            if c["dynamics"] == "clock":
                following[:, f] = w[f"clock_{f}"][s[:, f].astype(int)] if c["labels"] else s[:, f] + w[f"clock_{f}"]
        learned = [f for f in drawn if self.columns[f]["dynamics"] == "learned"]
        for j, f in enumerate(drawn):
            c, u = self.columns[f], uniform[:, j].astype(float)
            if f in learned:
                width = len(c["labels"]) or 3
                p, at = heads[:, at : at + width].astype(float), at + width
                start = w[f"start_{f}"]
                if c["labels"]:
                    p = np.exp(p + start.reshape(-1, width)[entry[:, j]])
                else:
                    constant, slope, log_scale = start[action].T
                    p[:, 0] += constant + slope * (s[:, f] - c["centre"]) / c["scale"]
                    p[:, 1] += log_scale
            else:
                p = w[f"table_{f}"].reshape(-1, len(c["labels"]))[entry[:, j]].astype(float)
            if c["labels"]:
                cumulated = p.cumsum(1)
                following[:, f] = (cumulated[:, :-1] <= u[:, None] * cumulated[:, -1:]).sum(1)
                encoded = (following[:, f, None] == np.arange(len(c["labels"]))).astype(float)
            else:
                spike = 1 / (1 + np.exp(-(p[:, 2] + w["atom"][learned.index(f)])))
                left = (u - spike) / (1 - spike)  # 0 or less: the minimum's own probability
                v = np.clip(left, 1e-300, 1 - 1e-16)
                quantile = np.log(v / (1 - v)) if c["kind"] == "count" else np.array([*map(NormalDist().inv_cdf, v)])
                quantile = np.where(left > 0, quantile, -np.inf)
                value = s[:, f] + c["scale"] * (p[:, 0] + np.exp(np.clip(p[:, 1], -7, 3)) * quantile)
                value = np.round(value) if c["kind"] == "count" else value
                following[:, f] = np.clip(value, c["minimum"], c["maximum"])
                encoded = ((following[:, f] - c["centre"]) / c["scale"])[:, None]
            heads = heads + encoded @ sequence[seen : seen + encoded.shape[1]]
            seen += encoded.shape[1]
        return following


@pytest.mark.parametrize("options", [{}, {"reward": {"structure": "linear"}}], ids=["full", "linear"])
def test_a_reader_in_numpy_says_what_the_model_says(options, tmp_path):
    model = made.model_of(**options)
    assert export(model, "safetensors", tmp_path) == ["weights.safetensors", "schema.json"]
    reader, state = Reader(tmp_path), made.states(model)
    found, answers = reader.choices(state.numpy()), made.expected(model, state)
    for name, answer in answers.items():
        assert found[name] == pytest.approx(answer, abs=1e-5, nan_ok=True), name
    action, uniform = made.draws(model)
    uniform = uniform.clamp(0.01, 0.99)
    following = reader.transition(state.numpy(), action.numpy(), uniform.numpy())
    scale = np.array([1.0 if c.discrete else c.scale for c in made.COLUMNS])
    expected = model.dynamics.sample(state, action, uniform).numpy()
    assert following / scale == pytest.approx(expected / scale, abs=1e-5)
