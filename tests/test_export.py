"""Exported files against the Python model: unseen levels, menus, contracts, terminal states, any number of rows."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from irl.config import Config, InputError
from irl.data.schema import Column, StateSchema
from irl.export import export, graphs_of, normal_quantile, to_onnx, traced
from irl.fitted import FittedModel, new_networks

ROWS = 400
ACTIONS = ("none", "basic", "full")
COLUMNS = (
    Column(name="segment", kind="category", dynamics="static", labels=("gen_z", "rural_india", "urban_india"),
           maximum=2.0),
    Column(name="price_annual", kind="numeric", dynamics="static", assigned="randomised", centre=9.0, scale=2.0,
           minimum=5.0, maximum=12.0),
    Column(name="status", kind="category", dynamics="table", labels=("out", "in", "locked", "gone"), maximum=3.0,
           parents=(2, 3)),
    Column(name="use", kind="ordinal", dynamics="learned", labels=("0", "2", "5"), maximum=2.0),
    Column(name="visits", kind="count", dynamics="learned", centre=3.0, scale=4.0, maximum=20.0),
    Column(name="spend", kind="numeric", dynamics="learned", centre=30.0, scale=20.0, maximum=150.0),
    Column(name="month", kind="ordinal", dynamics="clock", labels=tuple(map(str, range(12))), maximum=11.0),
)  # fmt: skip
STATE = {
    "segment": {"kind": "category", "dynamics": "static"},
    "price_annual": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
    "status": {"kind": "category", "dynamics": "table", "parents": ["status", "use"]},
    "use": {"kind": "ordinal", "levels": ["0", "2", "5"], "dynamics": "learned"},
    "visits": {"kind": "count", "dynamics": "learned"},
    "spend": {"kind": "numeric", "dynamics": "learned"},
    "month": {"kind": "ordinal", "levels": 12, "dynamics": "clock"},
}
AVAILABLE = {"none": {"status": ["out", "in", "gone"]}, "full": {"status": "out"}}
HIDDEN = {"hidden": [7, 5]}
ATTENTION = {
    "default": {"none": {"status": "out"}, "basic": {"status": "in"}},
    "by": ["segment"],
    "shifters": ["visits"],
}


def model_of(*, rounds: int = 2, **options) -> FittedModel:
    """A model with random weights; locked: a contract (`basic` only); gone: terminal."""
    data = {"path": "none", "member": "id", "period": "t", "action": "plan", "actions": ACTIONS, "state": STATE,
            "available": AVAILABLE, "terminal": {"status": "gone"}, **options.pop("data", {})}  # fmt: skip
    steps = {name: HIDDEN for name in ("policy", "anchor_q", "reward", "dynamics")} | {"refit": {"rounds": rounds}}
    study = {"data": data, "anchor": {"action": "none", "reward": 0.3}, "discount": 0.9, "temperature": 0.8}
    config = Config.model_validate(study | {"estimation": steps} | options)
    schema = StateSchema(
        columns=COLUMNS,
        actions=ACTIONS,
        anchor=None if config.anchor.action is None else 0,
        anchor_weights=config.anchor.weights(ACTIONS),
        anchor_reward=config.anchor.reward,
        terminal=config.data.terminal,
        available=tuple((ACTIONS.index(a), condition) for a, condition in config.data.available.items()),
        defaults=tuple((ACTIONS.index(a), condition) for a, condition in config.defaults.items()),
        shifters=config.attention.shifters if config.attention else (),
    )
    if config.types.number > 1:
        schema = schema.with_types(config.types.number, dynamics=config.types.dynamics)
    torch.manual_seed(1)
    model = new_networks(config, schema)
    parts = [part for part in (model.refit, model.shares, model.attention, model.dynamics) if part is not None]
    for part in parts:
        for name, tensor in (*part.named_parameters(), *part.named_buffers()):
            if name.startswith("table"):
                tensor.data.copy_(torch.rand_like(tensor).softmax(-1))
            elif name.startswith(("theta", "weight", "start", "sequence", "heads")):
                tensor.data.copy_(0.3 * torch.randn_like(tensor))
    if model.refit is not None:
        model.refit.theta[0] = 0
    model.dynamics.atom[2] = -0.5  # spend sits at its minimum often
    return model


def states(model: FittedModel, rows: int = ROWS) -> torch.Tensor:
    """Every level, the unseen ones of categories included, and numbers."""
    generator = torch.Generator().manual_seed(0)
    columns = [
        torch.randint(0, c.levels + (c.kind == "category" and not c.hidden), (rows,), generator=generator).float()
        if c.discrete
        else c.minimum + (c.maximum - c.minimum) * torch.rand(rows, generator=generator)
        for c in model.schema.columns
    ]
    columns[4] = columns[4].round()
    return torch.stack(columns, 1)


def expected(model: FittedModel, state: torch.Tensor) -> dict[str, np.ndarray]:
    """What the model says of the same rows as a frame of labels."""
    frame = model.schema.decode(state)
    found = {name: getattr(model, name)(frame).to_numpy() for name in ("reward", "policy", "value")}
    if model.attention is not None:
        found["attention"] = model.attention_probability(frame).to_numpy()
    if model.shares is not None:
        found["types"] = model.type_probabilities(frame).to_numpy()
    return found


def draws(model: FittedModel, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """action[N], uniform[N, U]: the extremes among them."""
    generator = torch.Generator().manual_seed(2)
    uniform = torch.rand(rows, model.dynamics.n_random, generator=generator)
    uniform[: rows // 20] = uniform[: rows // 20].round().clamp(1e-6, 1 - 1e-6)
    return torch.randint(0, len(ACTIONS), (rows,), generator=generator), uniform


@pytest.fixture(scope="module")
def model() -> FittedModel:
    return model_of()


@pytest.fixture(scope="module")
def pt2(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pt2")
    assert export(model, "pt2", folder) == ["choices.pt2", "transition.pt2", "schema.json"]
    return folder


@pytest.fixture(scope="module")
def programs(pt2) -> dict[str, torch.export.ExportedProgram]:
    """The files, read where this package cannot be imported."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "irl"]:
            patch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError):
            importlib.import_module("irl.export")
        return {name: torch.export.load(pt2 / f"{name}.pt2") for name in ("choices", "transition")}


def test_the_rows_of_the_tests_have_all_that_is_special(model):
    state = states(model)
    answers = expected(model, state)
    at = {c.name: state[:, f] for f, c in enumerate(COLUMNS)}
    assert (at["segment"] == 3).any() and (at["status"] == 4).any()  # unseen
    nothing = np.isnan(answers["reward"]).all(1)
    assert (nothing == (at["status"] >= 2).numpy()).all()  # locked, gone, unseen: only `basic` or nothing
    assert np.isnan(answers["reward"])[~nothing].any()  # not available
    assert (answers["policy"].sum(1)[(at["status"] == 3).numpy()] == 0).all()
    assert np.ptp(answers["value"][~np.isnan(answers["value"])]) > 1


def test_choices_say_what_the_model_says_for_any_number_of_rows(model, programs):
    choices = programs["choices"].module()
    for rows in (ROWS, 1, 2, 0):
        found = choices(states(model, rows))
        for name, answer in expected(model, states(model, rows)).items():
            assert found[name].numpy() == pytest.approx(answer, abs=1e-5, nan_ok=True), name


def test_transitions_are_the_models_draws(model, programs):
    transition, state = programs["transition"].module(), states(model)
    action, uniform = draws(model)
    following = model.dynamics.sample(state, action, uniform)
    assert (following != state).any(0).tolist() == [False, False, True, True, True, True, True]
    for rows in (ROWS, 1):
        assert torch.allclose(transition(state[:rows], action[:rows], uniform[:rows]), following[:rows], atol=1e-5)


def test_onnx_files_say_the_same(model, programs):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    sessions = {}
    for name, (_, inputs, outputs) in graphs_of(model).items():
        sessions[name] = runtime.InferenceSession(to_onnx(programs[name], inputs, outputs))
    state, (action, uniform) = states(model), draws(model)
    answers = expected(model, state)
    for rows in (ROWS, 1):
        found = sessions["choices"].run(["reward", "policy", "value"], {"state": state[:rows].numpy()})
        for name, values in zip(("reward", "policy", "value"), found, strict=True):
            assert values == pytest.approx(answers[name][:rows], abs=1e-5, nan_ok=True), name
    uniform = uniform.clamp(0.01, 0.99)  # float32 says little of quantiles beyond
    inputs = {"state": state.numpy(), "action": action.numpy(), "uniform": uniform.numpy()}
    (following,) = sessions["transition"].run(None, inputs)
    scale = np.array([1.0 if c.discrete else c.scale for c in COLUMNS])
    assert following / scale == pytest.approx(model.dynamics.sample(state, action, uniform).numpy() / scale, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 0},
        {"types": 2},
        {"attention": ATTENTION},
        {"reward": {"structure": "linear"}, "anchor": {"policy": {"none": 1, "basic": "visits"}, "reward": "spend"}},
    ],
    ids=["without refit", "types", "attention", "linear, anchor by weights"],
)
@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["module", "graph"])
def test_every_kind_of_model_is_exported_as_it_is(options, graph):
    model = model_of(**options)
    choices, inputs, outputs = graphs_of(model)["choices"]
    with torch.no_grad():
        found = (traced(choices, inputs).module() if graph else choices)(states(model))
    answers = expected(model, states(model))
    assert set(found) == set(outputs) == set(answers)
    for name, answer in answers.items():
        assert found[name].numpy() == pytest.approx(answer, abs=1e-5, nan_ok=True), name


def test_the_schema_says_what_columns_and_codes_are(pt2):
    said = json.loads((pt2 / "schema.json").read_text("utf-8"))
    assert [c["name"] for c in said["state"]] == [c.name for c in COLUMNS]
    status, spend = said["state"][2], said["state"][5]
    assert (status["labels"], status["unseen"], status["unit"]) == (["out", "in", "locked", "gone"], 4, "code")
    assert (spend["unit"], spend["maximum"]) == ("as in the panel", 150.0)
    assert said["uniform"] == ["status", "use", "visits", "spend"] and said["actions"] == [*ACTIONS]
    assert said["graphs"]["transition"] == {"inputs": ["state", "action", "uniform"], "outputs": ["next_state"]}
    assert (said["discount"], said["temperature"], said["terminal"]) == (0.9, 0.8, {"status": ["gone"]})


def test_prices_have_their_currency(tmp_path):
    model = model_of(money={"currency": "USD", "price": {"basic": "price_annual"}})
    export(model, "safetensors", tmp_path)
    units = {c["name"]: c["unit"] for c in json.loads((tmp_path / "schema.json").read_text("utf-8"))["state"]}
    assert units["price_annual"] == "USD" and units["spend"] == "as in the panel"


def test_the_simulator_of_the_readme_needs_nothing_but_the_files(pt2, monkeypatch, capsys):
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
    (code,) = (block for block in re.findall("```python\n(.*?)```", readme, re.DOTALL) if "torch.export.load" in block)
    assert "irl" not in code and len(code.splitlines()) <= 30
    monkeypatch.chdir(pt2)
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(re.search(r"none.*basic.*full", line) for line in lines)


def test_the_model_itself_is_not_changed(model, pt2):
    assert model.refit.covariance.numel() and model.anchor_network.head.requires_grad


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"anchor": {"action": "none", "reward": "bonus"}}, "the anchor's reward is the column 'bonus'"),
        ({"data": {"duration": "k"}}, "its rows last several periods"),
    ],
)
def test_what_the_files_could_not_say_is_refused(options, said, tmp_path):
    with pytest.raises(InputError, match=said):
        export(model_of(**options), "pt2", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_normal_quantile_is_that_of_torch():
    p = torch.cat([torch.rand(1000, dtype=torch.float64), torch.logspace(-7, -1, 50, dtype=torch.float64)])
    for q in (p, 1 - p):
        assert normal_quantile(q) == pytest.approx(torch.special.ndtri(q), rel=1e-6, abs=1e-6)
    assert normal_quantile(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-torch.inf, 0.0, torch.inf]
