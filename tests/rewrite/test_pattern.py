"""The pattern language: what it parses to, what it fits, and what it says when it does not."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from torch import fx
from torch.fx.node import Node

from fxprune import functional as prune
from fxprune.errors import RecipeError
from fxprune.program import ops
from fxprune.program.program import Program
from fxprune.rewrite.matching import match
from fxprune.rewrite.pattern import Anything, Call, Constant, Match, Name, Pattern, Refusal, parse
from tests.tools.helpers import program, source_of

PARSED: list[tuple[str, Pattern]] = [
    ("_", Anything()),
    ("W", Name("W")),
    (" x ", Name("x")),
    ("1", Constant(1)),
    ("0.5", Constant(0.5)),
    ("None", Constant(None)),
    ("True", Constant(True)),
    ("'same'", Constant("same")),
    ("-2", Constant(-2)),
    ("-0.5", Constant(-0.5)),
    ("relu()", Call("relu", (), ())),
    ("conv2d(_, W, *)", Call("conv2d", (Anything(), Name("W")), ())),
    ("cat(*, dim=1)", Call("cat", (), (("dim", Constant(1)),))),
    ("relu(conv2d( * ))", Call("relu", (Call("conv2d", (), ()),), ())),
    ("linear(_, W, b)", Call("linear", (Anything(), Name("W"), Name("b")), ())),
    ("conv2d(_, W, groups=1)", Call("conv2d", (Anything(), Name("W")), (("groups", Constant(1)),))),
    ("relu(add(x, x))", Call("relu", (Call("add", (Name("x"), Name("x")), ()),), ())),
]


@pytest.mark.parametrize(("text", "pattern"), PARSED, ids=[text for text, _ in PARSED])
def test_a_pattern_parses_to_data(text: str, pattern: Pattern):
    assert parse(text) == pattern


def test_capital_names_are_parameters():
    assert Name("W").is_parameter
    assert Name("Weight").is_parameter
    assert not Name("w").is_parameter
    assert not Name("_x").is_parameter


NAME_OR_CALL = "expected a name, a constant or operator(...)"
FAULTS: list[tuple[str, str, str]] = [
    ("a.relu(x)", NAME_OR_CALL, "^"),
    ("relu(a.b)", NAME_OR_CALL, "     ^"),
    ("relu(x)(y)", NAME_OR_CALL, "^"),
    ("add(x, {1})", NAME_OR_CALL, "       ^"),
    ("add(x + 1)", NAME_OR_CALL, "    ^"),
    ("add(-x)", NAME_OR_CALL, "    ^"),
    ("add(-'a')", NAME_OR_CALL, "    ^"),
    ("conv2d(_, W, **more)", "`**` is not part of the language", "             ^"),
    ("relu(x", "this is not an expression", "    ^"),
]


@pytest.mark.parametrize(("text", "what", "caret"), FAULTS, ids=[text for text, _, _ in FAULTS])
def test_a_fault_is_pointed_at(text: str, what: str, caret: str):
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert str(caught.value) == f"pattern: {what}\n  {text}\n  {caret}"


@pytest.mark.parametrize("text", ["conv2d(*, W)", "add(x, *, y)", "f(*, *)", "add(*x)"])
def test_the_rest_comes_last(text: str):
    with pytest.raises(RecipeError):
        parse(text)


@pytest.mark.parametrize("text", ["", "relu x", "x := 3", "f(x); g(y)", "f(x"])
def test_what_python_cannot_read_is_a_fault(text: str):
    with pytest.raises(RecipeError, match=r"this is not an expression\n.*\n *\^$"):
        parse(text)


def test_the_caret_stands_right_after_leading_blanks():
    with pytest.raises(RecipeError) as caught:
        parse("  relu(a.b)")
    shown, caret = str(caught.value).splitlines()[1:]
    assert shown.index("a.b") == caret.index("^")


# Fitting


def node_of(program: Program, op: str) -> Node:
    return next(n for n in program.graph.nodes if ops.canonical_name(n.target) == op)


def fit(text: str, program: Program, op: str) -> Match | Refusal:
    return match(parse(text), node_of(program, op), program)


def bound(text: str, program: Program, op: str) -> dict[str, str]:
    found = fit(text, program, op)
    assert isinstance(found, Match), found
    assert found.node is node_of(program, op)
    return {name: str(value) for name, value in found.bindings.items()}


CONV: list[tuple[str, str, dict[str, str]]] = [
    ("_", "conv2d", {}),
    ("x", "relu", {"x": "relu"}),
    ("conv2d(_, W)", "conv2d", {"W": "_0_weight"}),
    ("conv2d(x, W, B)", "conv2d", {"x": "input_1", "W": "_0_weight", "B": "_0_bias"}),
    ("conv2d(weight=W, groups=1)", "conv2d", {"W": "_0_weight"}),
    ("conv2d(_, groups=g)", "conv2d", {"g": "1"}),
    ("linear(_, W, bias=b)", "linear", {"W": "_4_weight", "b": "_4_bias"}),
    ("relu(batch_norm(conv2d(_, W)))", "relu", {"W": "_0_weight"}),
    ("relu(batch_norm(conv2d(_, W), G))", "relu", {"W": "_0_weight", "G": "_1_weight"}),
    ("batch_norm(x, _, _, _, _, t)", "batch_norm", {"x": "conv2d", "t": "_1_training"}),
    ("flatten(_, 1)", "flatten", {}),
    ("flatten(*)", "flatten", {}),
    ("flatten(_, end_dim=-1)", "flatten", {}),
    ("batch_norm(_, eps=0.00001)", "batch_norm", {}),
]


@pytest.mark.parametrize(("text", "op", "bindings"), CONV, ids=[text for text, _, _ in CONV])
def test_a_pattern_binds_what_it_names(text: str, op: str, bindings: dict[str, str]):
    assert bound(text, source_of("conv"), op) == bindings


REFUSED: list[tuple[str, str, str, str]] = [
    ("linear(_, W)", "conv2d", "the operator is conv2d, not linear", "conv2d"),
    ("conv2d(W)", "conv2d", "input_1 is not a parameter", "conv2d"),
    ("W", "conv2d", "conv2d is not a parameter", "conv2d"),
    ("conv2d(_, W, groups=2)", "conv2d", "1 is not 2", "conv2d"),
    ("conv2d(_, W, groups=1.0)", "conv2d", "1 is not 1.0", "conv2d"),
    ("flatten(_, True)", "flatten", "1 is not True", "flatten"),
    ("conv2d(_, W, group=1)", "conv2d", "conv2d has no argument group", "conv2d"),
    ("relu(x, y)", "relu", "relu has no argument 2", "relu"),
    ("relu(conv2d(_, W))", "relu", "the operator is batch_norm, not conv2d", "batch_norm"),
    ("conv2d(relu(x), W)", "conv2d", "input_1 is not a call of relu", "conv2d"),
    ("conv2d(_, weight=W, bias=W)", "conv2d", "W is bound to two different values", "conv2d"),
]


@pytest.mark.parametrize(
    ("text", "op", "reason", "node"), REFUSED, ids=[text for text, _, _, _ in REFUSED]
)
def test_what_does_not_fit_is_said(text: str, op: str, reason: str, node: str):
    refusal = fit(text, source_of("conv"), op)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert refusal.node is not None
    assert refusal.node.name == node
    assert str(refusal) == f"{reason} (node {node})"


def test_a_refusal_without_a_node_is_its_reason():
    assert str(Refusal("it is Tuesday")) == "it is Tuesday"


TWICE = ("linear(relu(linear(_, W, B)), W, B)", "linear(x, W, x)", "linear(x, W, _)")


def test_a_name_that_stands_twice_is_the_same_twice():
    twice = source_of("twice")
    outer = next(n for n in twice.graph.nodes if n.name == "linear_1")
    same, different, once = (match(parse(text), outer, twice) for text in TWICE)
    assert isinstance(same, Match)
    assert {name: str(node) for name, node in same.bindings.items()} == {
        "W": "fc_weight",
        "B": "fc_bias",
    }
    assert different == Refusal("x is bound to two different values", outer)
    assert isinstance(once, Match)


@pytest.mark.parametrize("value", [0.5, 10**9, [2, 2], (1, "a")])
def test_equal_constants_are_the_same_value(value: Any):
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.ops.aten.max_pool2d.default, (x, value, copied(value)))
    assert isinstance(match(parse("max_pool2d(x, k, k)"), node, source_of("mlp")), Match)


def copied(value: Any) -> Any:
    """Make a value that is equal and not the same object."""
    return ast.literal_eval(repr(value))


# Masked parameters


def masked() -> Program:
    return prune.identity(program("mlp"), "0.weight")


def test_a_parameter_is_its_product_with_the_mask_where_it_is_masked():
    assert bound("linear(_, W, B)", masked(), "linear") == {"W": "mul_tensor", "B": "_0_bias"}
    assert bound("W", masked(), "mul") == {"W": "mul_tensor"}


def test_a_mask_is_no_parameter():
    assert bound("mul(W, m)", masked(), "mul") == {"W": "_0_weight", "m": "_0_weight_mask"}
    refusal = fit("mul(self=_, other=M)", masked(), "mul")
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "_0_weight_mask is not a parameter"
