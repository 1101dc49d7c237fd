"""A fitted model as files that need nothing of this package: torch.export (``pt2``), ONNX, or safetensors.

Two graphs, both with a dynamic number of rows N, take the *raw* columns of the state: codes of categories and ordinals,
numbers in the units of the panel (the encoders are inside).

    choices     state[N, F]  ->  reward[N, A], policy[N, A], value[N]
    transition  state[N, F], action[N], uniform[N, U]  ->  next_state[N, F]

Randomness is an input, so that the graphs are deterministic: ``uniform`` has one number from (0, 1) for every column
that is drawn, independent of all others. Programmes compared at the same numbers share their luck. ``schema.json``
beside the graphs says what every column, code, action and output is; with ``safetensors`` it also says what is to be
computed from the weights.

Answers are those of :class:`irl.fitted.FittedModel`: the refit's where there is one; where an action is not available,
reward NaN and probability 0; in terminal states value 0 and no action; NaN where nothing is chosen. So contracts need
nothing more: inside, one action has probability 1, and what the contract gives is in the reward of signing it. With
hidden types the last column of the state is the member's type, which never changes, and ``choices`` also gives
``types[N, K]``, the probabilities to draw it by in the state that a member is first seen in. With inattention
``policy`` is what happens, and ``choices`` also gives ``attention[N]``, the probability of a decision.

Refused are studies whose anchor's reward is a column outside the state, and those whose rows last several periods: what
these give, or when their next state comes, does not follow from state and action.

ONNX has no quantile function of the normal distribution, which numbers are drawn by: there it is that of Giles,
*Approximating the erfinv function* (GPU Computing Gems, Jade edition, 2011), good to 2e-7. Limit: in float32 a uniform
number within 1e-5 of 0 or 1 says its quantile to a hundredth of a standard deviation only, here as in the model.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from irl import __version__, runs
from irl.config import Config, InputError
from irl.data.column import Column
from irl.fitted import FittedModel, free_rows

Format = Literal["pt2", "onnx", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
SCHEMA = "schema.json"
"""What is said of the files; written last."""
VERSION = 1
"""Of the contents of ``schema.json``."""
Graphs = dict[str, tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]]
"""Name -> (module, its inputs by name: a few rows, the names of its outputs)."""


class Choices(nn.Module):
    """What a fitted model says of state[N, F], by name; float64."""

    def __init__(self, model: FittedModel) -> None:
        super().__init__()
        self.model = model
        self.networks = nn.ModuleDict(_networks(model))  # else their weights would be constants of the graph

    @property
    def answers(self) -> tuple[str, ...]:
        """The names of the answers."""
        optional = {"attention": self.model.attention, "types": self.model.shares}
        return ("reward", "policy", "value", *(name for name, part in optional.items() if part is not None))

    def forward(self, state: Tensor) -> dict[str, Tensor]:
        model = self.model
        menu = model.schema.menu(state) & ~model.schema.is_terminal(state).unsqueeze(1)
        free = free_rows(model.schema, state).unsqueeze(1)
        answers = {
            "reward": model.reward_of(state).masked_fill(~(menu & free), torch.nan),
            "policy": model.seen_policy_of(state, menu).exp(),
            "value": model.value_of(state),
        }
        inertia = model.inertia_of(state)
        if inertia is not None:
            answers["attention"] = inertia.within(menu)
        if model.shares is not None:
            answers["types"] = model.log_shares(state).exp()
        return {name: answer.double() for name, answer in answers.items()}


class Transition(nn.Module):
    """A draw of the next state[N, F] after state[N, F] and action[N], by uniform[N, U] in (0, 1)."""

    def __init__(self, model: FittedModel) -> None:
        super().__init__()
        self.dynamics = model.dynamics

    def forward(self, state: Tensor, action: Tensor, uniform: Tensor) -> Tensor:
        return self.dynamics.sample(state, action, uniform)


def check_exportable(model: FittedModel, format: Format) -> None:
    """InputError if files would not say what the model says, or the packages that write them are missing."""
    schema, duration = model.schema, model.config.data.duration
    problems = []
    if not schema.knows_anchor_reward:
        problems.append(
            f"the anchor's reward is the column {schema.anchor_reward!r}, which is not part of the state; list it "
            "under `data.state` and train again"
        )
    if duration is not None:
        problems.append(f"its rows last several periods (`duration: {duration}`); train on rows of one period")
    if problems:
        raise InputError("this study cannot be exported:\n  " + "\n  ".join(problems))
    missing = [name for name in ("onnx", "onnxscript") if format == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX files are written by {' and '.join(missing)}: pip install 'anchor-irl[export]'")


def export(model: FittedModel, format: Format, folder: Path) -> list[str]:
    """Write the model to ``folder``, which is there; the names of the files. ``schema.json`` comes last.

    Raises
    ------
    InputError
        As :func:`check_exportable`.
    """
    check_exportable(model, format)
    model = _bare(model)
    graphs = graphs_of(model)
    contents: dict[str, bytes] = {}
    for name, (module, inputs, outputs) in graphs.items() if format != "safetensors" else ():
        program = traced(module, inputs)
        contents[f"{name}.{format}"] = to_pt2(program) if format == "pt2" else to_onnx(program, inputs, outputs)
    if format == "safetensors":
        contents["weights.safetensors"] = save_tensors(_weights(model))
    for file, content in contents.items():
        runs.atomic_write(folder / file, content)
    runs.write_json(folder / SCHEMA, described(model, graphs, format, [*contents]))
    return [*contents, SCHEMA]


def graphs_of(model: FittedModel) -> Graphs:
    """The two graphs of a model on a CPU."""
    rows = 5  # not 0 or 1, at which torch.export would fix their number
    drawn, columns = model.dynamics.n_random, model.schema.columns
    state = torch.tensor([[0.0 if c.discrete else c.minimum for c in columns]]).repeat(rows, 1)
    action = torch.full((rows,), model.schema.base)
    choices = Choices(model).eval()
    inputs = {"state": state, "action": action, "uniform": torch.full((rows, max(drawn, 1)), 0.5)}
    return {
        "choices": (choices, {"state": state}, choices.answers),
        "transition": (Transition(model).eval(), inputs, ("next_state",)),
    }


@torch.no_grad()
def traced(module: nn.Module, inputs: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """The graph of a module for any number of rows."""
    rows = torch.export.Dim("rows")
    return torch.export.export(module, tuple(inputs.values()), dynamic_shapes=({0: rows},) * len(inputs), strict=False)


def to_pt2(program: torch.export.ExportedProgram) -> bytes:
    """The file that ``torch.export.load`` reads."""
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def to_onnx(program: torch.export.ExportedProgram, inputs: Iterable[str], outputs: Iterable[str]) -> bytes:
    """The graph as an ONNX file, with these names of its inputs and outputs."""
    with _quiet():
        known = program.run_decompositions({torch.ops.aten.special_ndtri.default: normal_quantile})
        found = torch.onnx.export(known, input_names=[*inputs], output_names=[*outputs], dynamo=True, verbose=False)
    assert found is not None
    content: bytes = found.model_proto.SerializeToString()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the ONNX exporter says of packages that are not needed, and of its own ways."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


CENTRAL = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
           -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
        1.00167406, 2.83297682)  # fmt: skip
"""Giles' polynomials, the highest power first."""


def normal_quantile(probability: Tensor) -> Tensor:
    """The quantile function of the normal distribution, elementwise, by Giles' approximation of erfinv; in float64,
    since in float32 the tails of 1 - p are lost."""
    p = probability.double()
    w = -(4 * p * (1 - p)).log()
    central, tail = _polynomial(CENTRAL, w - 2.5), _polynomial(TAIL, w.sqrt() - 3)
    found = 2**0.5 * (2 * p - 1) * torch.where(w < 5, central, tail)
    found = torch.where(p <= 0, -torch.inf, torch.where(p >= 1, torch.inf, found))
    return found.to(probability.dtype)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for coefficient in coefficients:
        total = total * x + coefficient
    return total


def _networks(model: FittedModel) -> dict[str, nn.Module]:
    """The parts of a model by the names of its fields."""
    return {name: part for name, part in vars(model).items() if isinstance(part, nn.Module)}


def _bare(model: FittedModel) -> FittedModel:
    """A copy on the CPU, without gradients and without covariances, which no answer needs."""
    model = copy.deepcopy(model)
    for part in _networks(model).values():
        part.cpu().requires_grad_(False)
        for module in part.modules():
            if "covariance" in dict(module.named_buffers(recurse=False)):
                module.covariance = torch.zeros(0)
    return model


def _weights(model: FittedModel) -> dict[str, Tensor]:
    """Every number of the model, by part and name."""
    found = {
        f"{part}.{name}": tensor.detach().contiguous().clone()
        for part, network in _networks(model).items()
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }
    return {name: tensor for name, tensor in found.items() if not name.endswith("covariance")}


MEANING = {
    "state": "one row per member, float32, the columns in this order: of a category or an ordinal the code, which is "
    "the place of the label under `labels` from 0 (`unseen`: any label that is not there); else a number, in its unit",
    "actions": "the order of the columns of reward and policy, and from 0 the codes of `action` (int64)",
    "reward": "per period, in units of which `temperature` is the scale of the logit shocks; NaN where an action is "
    "not available, and where nothing is chosen: what a contract gives inside is part of the reward of signing it",
    "policy": "choice probabilities (with `defaults`: of what happens, decided or not); all 0 in terminal states",
    "value": "soft value, in reward units: NaN where nothing is chosen, 0 in terminal states; no level is identified",
    "attention": "probability of a decision; otherwise the first of `defaults` whose condition holds happens",
    "types": "probabilities of the hidden types in the state that a member is first seen in, whatever type it says",
    "uniform": "float32, independent numbers from (0, 1), one for every column listed under `uniform`, in this order",
    "next_state": "the state one period later; of no meaning after terminal states and actions that are not available",
    "available": "action code -> condition (column -> labels, values or a range); others are always available",
}
COMPUTATION = [
    "s[F]: a row of `state`; silu(x) = x / (1 + exp(-x)); weights are named part.name; sums in the type of the weights",
    "encoder: (1{s[slot_column] == slot_code}, (s[scalar_column] - centre) / scale), joined",
    "trunk: h = encoder, then for layers 0, 2, ...: h = silu(weight h + bias)",
    "features by `factors`: x[0] = 1; x[i] of entry i - 1: 1{s[column] == code} where code >= 0, else z = (s[column] - "
    "centre) / scale, and max(z - knot, 0) where knot is finite; feature d = product over k of x[factors[k, d]]",
    "features by `worth`: 1; then for every d: s[column] where counted, else worth[d, s[column]]",
    "phi = (terms; crossings, if there, but for their first; trunks of policy_network, anchor_network, reward_network)",
    "mu: 1 at the anchor action; or the anchor policy's weights on the menu, normalised; g: the anchor's reward",
    "with refit: u[a] = theta[a].terms, g at the anchor action; reward = u - sum mu u + g; Q = reward + weights phi; "
    "value = temperature log sum over the menu of exp(Q / temperature); policy = exp((Q - value) / temperature)",
    "without: policy = softmax over the menu of policy_network.head(trunk); u = centre + scale head(trunk) of "
    "reward_network, g where mu is 1; reward = u - sum mu u + g; W = g + sum mu[a] head[a].(crossings, trunk) of "
    "anchor_network; value = W - temperature sum mu log policy",
    "attention: sigmoid of weight.x, within 1e-6 of 0 and 1, 1 where the default is not available; types: softmax of "
    "weight x; x = (features - centre) / scale",
    "policy with attention l and default d: l policy + (1 - l) 1{a = d}; value: l value + (1 - l) Q[d]",
    "draw of a level by weights p at the uniform u: the number of levels but the last whose cumulated p is <= u sum(p)",
    "dynamics, column f: static stay; clock: clock_f[s[f]], of numbers s[f] + clock_f; then `uniform`, j in its order",
    "table: p = row strides[j].s + action of table_f, its first two axes as one",
    "learned: parameters = heads(h) + start, h = silu layers of trunk on (encoder, 1{action}); start of levels: row "
    "strides[j].s + action of start_f; of numbers: (start_f[a, 0] + start_f[a, 1] (s[f] - centre) / scale, "
    "start_f[a, 2], 0); what is drawn (one-hot, or standardised) times its rows of sequence * earlier is added to the "
    "parameters of all heads",
    "draw of levels: p = exp(parameters); of numbers: at = s[f] + scale p[0], width = scale exp(p[1] within -7 and 3), "
    "spike = sigmoid(p[2] + atom), v = (u - spike) / (1 - spike) within 0 and 1; count: round(at + width logit(v)), "
    "numeric: at + width normal quantile(v); within minimum and maximum",
]


def described(model: FittedModel, graphs: Graphs, format: Format, files: list[str]) -> dict[str, Any]:
    """What ``schema.json`` says, as plain values."""
    schema, config, dynamics = model.schema, model.config, model.dynamics
    known = schema.to_json()
    names = {name: {"inputs": [*inputs], "outputs": [*outputs]} for name, (_, inputs, outputs) in graphs.items()}
    said = {
        "software": f"{runs.SOFTWARE} {__version__}",
        "version": VERSION,
        "format": format,
        "files": files,
        "graphs": names,
        "state": [_described(column, config) for column in schema.columns],
        "actions": [*schema.actions],
        "uniform": [schema.names[f] for f in (*dynamics.table, *dynamics.learned)],
        "available": known["available"],
        "terminal": known["terminal"],
        "defaults": known["defaults"],
        "anchor": config.anchor.model_dump(mode="json"),
        "discount": config.discount,
        "temperature": config.temperature,
        "same_flow_as": {action: flow.model_dump(mode="json") for action, flow in config.reward.same_flow_as.items()},
        "meaning": MEANING,
    }
    return said | ({"computation": COMPUTATION} if format == "safetensors" else {})


def _described(column: Column, config: Config) -> dict[str, Any]:
    """One column: what its codes or numbers are."""
    flows = [*config.money.price.values(), *config.money.cost.values()] if config.money else []
    unit = "as in the panel"
    if config.money is not None and column.name in [flow.amount for flow in flows]:
        unit = config.money.currency
    about = {**asdict(column), "labels": [*column.labels], "parents": [*column.parents]}
    if column.discrete:
        return about | {"unit": "code"} | ({"unseen": column.levels} if column.kind == "category" else {})
    return about | {"unit": unit}
