"""The arguments and outputs of a Program: names, order, constants, nesting, and refusals."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, InputError
from tests.tools.capture_helpers import check_same, net


class Pair(NamedTuple):
    first: Tensor
    rest: Any


@dataclass
class Answer:
    logits: Tensor
    states: Any


torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def tensors(rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, 3), torch.randn(rows, 2), torch.randn(rows, 2)


def three(self: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return self.l(x) + 2 * a + b


# Names and order


def test_arguments_by_position_or_name_in_any_order() -> None:
    model, (x, a, b) = net(three, l=linear()), tensors()
    program = fxprune.capture(model, (x, a, b))
    x, a, b = tensors(7)
    for out in (program(x, a, b), program(b=b, x=x, a=a), program(x, b=b, a=a)):
        check_same(out, model(x, a, b))


def test_keywords_of_the_example_in_another_order() -> None:
    model, (x, a, b) = net(three, l=linear()), tensors()
    program = fxprune.capture(model, (x,), {"b": b, "a": a})
    x, a, b = tensors(7)
    for out in (program(x, a=a, b=b), program(b=b, a=a, x=x)):
        check_same(out, model(x, a, b))


@pytest.mark.parametrize("positional", [1, 0])
def test_keywords_are_not_taken_by_position_in_another_order(positional: int) -> None:
    model, (x, a, b) = net(three, l=linear()), tensors()
    args, kwargs = ((x,), {"b": b, "a": a}) if positional else ((), {"b": b, "a": a, "x": x})
    program = fxprune.capture(model, args, kwargs)
    try:
        out = program(x, a, b)
    except (TypeError, InputError):
        return
    check_same(out, model(x, a, b))


def test_a_tuple_of_arguments() -> None:
    model, (x, _, _) = net(lambda self, *xs: sum(map(self.l, xs)), l=linear()), tensors()
    program = fxprune.capture(model, (x, x + 1, x + 2))
    check_same(program(x, x * 2, x * 3), model(x, x * 2, x * 3))


def test_arguments_before_a_tuple_of_arguments() -> None:
    def forward(self: Any, x: Tensor, *ys: Tensor, scale: float = 1.0) -> Tensor:
        return self.l(x) * scale + torch.stack(ys).sum(0)

    model, (x, a, b) = net(forward, l=linear()), tensors()
    program = fxprune.capture(model, (x, a, b))
    x, a, b = tensors(7)
    check_same(program(x, a, b), model(x, a, b))


def test_a_dict_of_keyword_arguments_has_a_batch() -> None:
    def forward(self: Any, x: Tensor, **named: Tensor) -> Tensor:
        return self.l(x) + named["a"] - named["b"]

    model, (x, a, b) = net(forward, l=linear()), tensors()
    program = fxprune.capture(model, (x,), {"a": a, "b": b})
    check_same(program(x[:2], b=b[:2], a=a[:2]), model(x[:2], b=b[:2], a=a[:2]))
    x, a, b = tensors()
    check_same(program(x, b=b, a=a), model(x, b=b, a=a))


def test_one_tensor_stands_for_a_tuple_of_one() -> None:
    model, x = linear(), torch.randn(4, 3)
    check_same(fxprune.capture(model, x)(x), model(x))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((torch.zeros(4, 3), torch.zeros(4, 3)), {}), ((), {}), ((torch.zeros(4, 3),), {"q": 1})],
)
def test_an_example_that_forward_does_not_take_is_refused(args: Any, kwargs: Any) -> None:
    with pytest.raises(CaptureError, match=r"positional|argument"):
        fxprune.capture(linear(), args, kwargs)


# Constants


def scaled(self: Any, x: Tensor, scale: float = 2.0, *, kind: str = "plain") -> Tensor:
    out = self.l(x) * scale
    return out if kind == "plain" else out.relu()


def test_constants_of_the_example_are_defaults() -> None:
    model, x = net(scaled, l=linear()), torch.randn(4, 3)
    program = fxprune.capture(model, (x, 3.0), {"kind": "relu"})
    for out in (program(x), program(x, 3.0), program(x, kind="relu"), program(x, scale=3.0)):
        check_same(out, model(x, 3.0, kind="relu"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": 4.0}, r"scale is fixed to 3\.0 in the graph, not 4\.0"),
        ({"scale": 3}, r"scale is fixed to 3\.0 in the graph, not 3"),
        ({"kind": "plain"}, r"kind is fixed to 'relu' in the graph, not 'plain'"),
        ({"scale": torch.tensor(3.0)}, r"scale is fixed to 3\.0 in the graph"),
    ],
)
def test_constants_with_another_value_are_refused(given: dict[str, Any], message: str) -> None:
    x = torch.randn(4, 3)
    program = fxprune.capture(net(scaled, l=linear()), (x, 3.0), {"kind": "relu"})
    with pytest.raises(InputError, match=message):
        program(x, **given)


def test_a_default_of_the_source_may_be_left_out() -> None:
    def forward(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.l(x) if mask is None else self.l(x) * mask

    model, x = net(forward, l=linear()), torch.randn(4, 3)
    check_same(fxprune.capture(model, (x,))(x), model(x))
    program = fxprune.capture(model, (x, None))
    for out in (program(x), program(x, None), program(x, mask=None)):
        check_same(out, model(x))
    with pytest.raises(InputError, match="mask is fixed to None"):
        program(x, torch.ones(4, 2))


# Nested values


def test_nested_inputs() -> None:
    def forward(self: Any, b: dict[str, Any], pair: tuple[Tensor, list[Tensor]]) -> Tensor:
        return self.l(b["x"]) + b["more"]["y"] + pair[0] * pair[1][0]

    def example(rows: int) -> Any:
        x, y, z = tensors(rows)
        return {"x": x, "more": OrderedDict(y=y)}, (z, [torch.randn(2)])

    model = net(forward, l=linear())
    program = fxprune.capture(model, example(4))
    given = example(7)
    check_same(program(*given), model(*given))
    assert [i.name for i in program.inputs.inputs] == [
        "b['x']",
        "b['more']['y']",
        "pair[0]",
        "pair[1][0]",
    ]


def test_a_named_tuple_as_input() -> None:
    model = net(lambda self, pair: self.l(pair.first) + pair.rest, l=linear())
    program = fxprune.capture(model, (Pair(torch.randn(4, 3), torch.randn(4, 2)),))
    given = Pair(torch.randn(7, 3), torch.randn(7, 2))
    check_same(program(given), model(given))


def test_a_dataclass_as_input() -> None:
    model = net(lambda self, answer: self.l(answer.logits) + answer.states, l=linear())
    program = fxprune.capture(model, (Answer(torch.randn(4, 3), torch.randn(4, 2)),))
    given = Answer(torch.randn(7, 3), torch.randn(7, 2))
    check_same(program(given), model(given))


@pytest.mark.parametrize(
    "nest",
    [
        lambda y: {"a": y, "b": (y * 2, [y * 3, {"c": y}])},
        lambda y: OrderedDict(z=y, a=y + 1),
        lambda y: Pair(y, [y + 1]),
        lambda y: Answer(logits=y, states=(y, {"s": y + 1})),
        lambda y: [y, None, 3, "text", 2.5],
        lambda y: (y,),
        lambda y: None,
    ],
    ids=["dict", "ordered", "namedtuple", "dataclass", "constants", "tuple", "none"],
)
def test_nested_outputs(nest: Any) -> None:
    model, x = net(lambda self, x: nest(self.l(x)), l=linear()), torch.randn(4, 3)
    program = fxprune.capture(model, (x,))
    for ours in (program, pickle.loads(pickle.dumps(program))):
        out, expected = ours(x), model(x)
        assert type(out) is type(expected)
        check_same(out, expected)


def test_outputs_that_are_inputs_or_parameters() -> None:
    model = net(lambda self, x: (x, self.l.weight, self.l(x), self.l.weight), l=linear())
    x = torch.randn(4, 3)
    program = fxprune.capture(model, (x,))
    check_same(program(x), model(x))
    masked = fxprune.prune(
        program, {"rule": [{"select": "l.weight", "method": "l1_unstructured", "amount": 0.5}]}
    )
    check_same(masked(x)[1], masked.value("l.weight"))


# What does not fit


def nested_program() -> fxprune.Program:
    model = net(lambda self, x, b: self.l(x) + b["y"][0], l=linear())
    return fxprune.capture(model, (torch.randn(4, 3),), {"b": {"y": [torch.randn(4, 2)]}})


@pytest.mark.parametrize(
    ("x", "b", "message"),
    [
        ((4, 5), {"y": [(4, 2)]}, r"input x: float32\[batch, 3\] was given \(4, 5\): 3 needed"),
        ((4,), {"y": [(4, 2)]}, r"input x: float32\[batch, 3\] was given \(4,\)"),
        ((4, 3), {"y": [(5, 2)]}, r"input b\['y'\]\[0\].*was given \(5, 2\): 4 needed"),
        ((4, 3), {"z": [(4, 2)]}, r"nested otherwise.*b\['y'\]\[0\]"),
        ((4, 3), {"y": (4, 2)}, r"nested otherwise.*b\['y'\]\[0\]"),
        ((4, 3), {"y": [(4, 2), (4, 2)]}, r"nested otherwise.*b\['y'\]\[0\]"),
    ],
)
def test_inputs_of_another_form_are_refused_by_name(x: Any, b: Any, message: str) -> None:
    def filled(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: filled(value) for key, value in part.items()}
        return [*map(filled, part)] if isinstance(part, list) else torch.randn(part)

    with pytest.raises(InputError, match=message):
        nested_program()(filled(x), b=filled(b))


@pytest.mark.parametrize("value", [None, 1.0, np.zeros((4, 3))])
def test_what_is_no_tensor_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InputError, match=r"input x: float32\[batch, 3\] must be a tensor"):
        nested_program()(value, b={"y": [torch.randn(4, 2)]})


def test_a_recurrent_layer_is_not_run_on_the_wrong_width() -> None:
    """torch's own operator does not check, and crashes."""
    program = fxprune.capture(nn.LSTM(3, 2, batch_first=True), (torch.randn(4, 5, 3),))
    with pytest.raises(InputError, match="3 needed where 7 stands"):
        program(torch.randn(4, 5, 7))


def test_only_modules_are_captured() -> None:
    with pytest.raises(TypeError, match=r"capture takes an nn\.Module, not str"):
        fxprune.capture("model", (torch.zeros(2),))  # pyright: ignore[reportArgumentType]


def test_the_spec_tells_names_shapes_dtypes_and_ranges() -> None:
    model = net(lambda self, ids, keep: self.e(ids) * keep.unsqueeze(-1), e=nn.Embedding(9, 2))
    example = (torch.tensor([[3, 8], [0, 1]]), torch.tensor([[True, False], [True, True]]))
    program = fxprune.capture(model, example)
    assert str(program.inputs) == "ids: int64[batch, 2] in 0..8, keep: bool[batch, 2] in 0..1"
    (ids, keep), kwargs = program.example(batch=5)
    assert kwargs == {}
    assert ids.shape == keep.shape == (5, 2)
    assert ids.max() <= 8
    check_same(program.example(batch=5), program.example(batch=5))


class Difference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc(a) - b


def test_a_tensor_that_is_given_twice_stands_for_two_arguments() -> None:
    model, x = Difference(), torch.randn(2, 4)
    program = fxprune.capture(model, (x,), {"b": x})
    both = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(program(*both), model(*both))
    assert torch.equal(program(x, x), model(x, x))
