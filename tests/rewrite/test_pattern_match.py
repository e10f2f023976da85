"""How patterns fit: orders, alternatives, lists, shared values, defaults, and the nearest miss."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import fx
from torch.fx.node import Node

from fxprune import functional as prune
from fxprune.program.program import Program
from fxprune.rewrite.matching import Search, match, matches
from fxprune.rewrite.pattern import Match, Refusal, parse
from tests.tools.helpers import program, source_of

aten = torch.ops.aten


class Drawn:
    """A graph written down: inputs a, b and c, a weight read twice, and a masked one's product."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.a, self.b, self.c = (self.graph.placeholder(name) for name in "abc")
        self.w, self.again = (self.graph.create_node("get_attr", "2.weight") for _ in range(2))
        self.orig = self.graph.create_node("get_attr", "0.weight_orig")
        self.mask = self.graph.create_node("get_attr", "0.weight_mask")
        self.product = self(aten.mul.Tensor, self.orig, self.mask)

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        return self.graph.call_function(target, args, kwargs)


@pytest.fixture
def drawn() -> Drawn:
    return Drawn()


@pytest.fixture(scope="module")
def masked() -> Program:
    return prune.identity(program("mlp"), "0.weight")


def bound(found: Match | Refusal) -> dict[str, str]:
    assert isinstance(found, Match), found
    return {name: str(value) for name, value in found.bindings.items()}


def told(found: Match | Refusal) -> tuple[str, str]:
    assert isinstance(found, Refusal), found
    return found.reason, str(found.node)


# Operators and alternatives


def test_in_place_variants_are_the_operator(drawn: Drawn, masked: Program):
    node = drawn(aten.relu_.default, drawn(aten.add_.Tensor, drawn.a, drawn.b))
    assert bound(match(parse("relu(add(x, y))"), node, masked)) == {"x": "a", "y": "b"}


def test_alternatives_of_the_operator(drawn: Drawn, masked: Program):
    relu, gelu = drawn(aten.relu.default, drawn.a), drawn(aten.gelu.default, drawn.b)
    for text in ("(relu|gelu)(x)", "relu|gelu(x)", "relu(x) | gelu(x)", "_(x)"):
        assert bound(match(parse(text), relu, masked)) == {"x": "a"}
        assert bound(match(parse(text), gelu, masked)) == {"x": "b"}
    neg = drawn(aten.neg.default, drawn.a)
    what = ("the operator is neg, not relu or gelu", "neg_default")
    assert told(match(parse("relu|gelu(x)"), neg, masked)) == what


def test_alternatives_inside_are_tried_in_order(drawn: Drawn, masked: Program):
    node = drawn(aten.neg.default, drawn(aten.linear.default, drawn.a, drawn.w))
    first = parse("neg(linear(x, _) | linear(_, W))")
    assert bound(match(first, node, masked)) == {"x": "a"}
    second = parse("neg(linear(V, _) | linear(_, W) | y)")
    assert bound(match(second, node, masked)) == {"W": "_2_weight"}


def test_an_alternative_is_taken_back_where_a_later_part_fails(drawn: Drawn, masked: Program):
    node = drawn(aten.sub.Tensor, drawn(aten.linear.default, drawn.a, drawn.w), drawn.a)
    pattern = parse("sub(linear(_, x) | linear(x, _), x)")
    assert bound(match(pattern, node, masked)) == {"x": "a"}


# Operands


def test_operands_stand_in_either_order(drawn: Drawn, masked: Program):
    relu = drawn(aten.relu.default, drawn.a)
    for op in (aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.eq.Tensor):
        text = f"{op.__name__.split('.')[0]}(relu(x), y)"
        for operands in ((relu, drawn.b), (drawn.b, relu)):
            node = drawn(op, *operands)
            assert bound(Search(masked, alone=False).first(parse(text), node)) == {
                "x": "a",
                "y": "b",
            }


def test_the_written_order_comes_first(drawn: Drawn, masked: Program):
    node = drawn(aten.add.Tensor, drawn.a, drawn.b)
    assert bound(match(parse("add(x, y)"), node, masked)) == {"x": "a", "y": "b"}
    assert bound(match(parse("add(x)"), node, masked)) == {"x": "a"}


def test_an_order_is_taken_back_where_a_later_part_fails(drawn: Drawn, masked: Program):
    total = drawn(aten.add.Tensor, drawn.a, drawn.b)
    node = drawn(aten.sub.Tensor, total, drawn.a)
    assert bound(match(parse("sub(add(x, y), y)"), node, masked)) == {"x": "b", "y": "a"}


@pytest.mark.parametrize(
    "text", ["sub(y, relu(x))", "add(y, relu(x), alpha=2)", "add(self=relu(x))"]
)
def test_what_does_not_commute_keeps_its_order(drawn: Drawn, masked: Program, text: str):
    op = aten.sub.Tensor if text.startswith("sub") else aten.add.Tensor
    relu = drawn(aten.relu.default, drawn.a)
    known = {"alpha": 2} if "alpha" in text else {}
    first, last = drawn(op, relu, drawn.b, **known), drawn(op, drawn.b, relu, **known)
    found = {
        n for n in (first, last) if isinstance(Search(masked, False).first(parse(text), n), Match)
    }
    assert found == {first if "self" in text else last}


def test_a_maximum_along_a_dimension_does_not_commute(drawn: Drawn, masked: Program):
    of_two = drawn(aten.max.other, drawn.a, drawn.w)
    along = drawn(aten.max.dim, drawn.a, 1)
    assert bound(match(parse("max(W, x)"), of_two, masked)) == {"W": "_2_weight", "x": "a"}
    assert isinstance(match(parse("max(1, x)"), along, masked), Refusal)
    assert isinstance(match(parse("max(x, 1)"), along, masked), Match)


def test_a_number_is_an_operand(drawn: Drawn, masked: Program):
    node = drawn(aten.add.Tensor, drawn.a, 1)
    assert bound(match(parse("add(1, x)"), node, masked)) == {"x": "a"}
    assert told(match(parse("add(2, x)"), node, masked)) == ("a is not 2", "add_tensor")


# Names


def test_a_name_that_stands_twice_is_one_parameter(drawn: Drawn, masked: Program):
    node = drawn(aten.sub.Tensor, drawn.w, drawn.again)
    for text in ("sub(W, W)", "sub(x, x)"):
        assert isinstance(match(parse(text), node, masked), Match)
    raw = drawn(aten.sub.Tensor, drawn.product, drawn.orig)
    assert isinstance(match(parse("sub(W, W)"), raw, masked), Match)
    # The stored value and the masked one differ.
    assert isinstance(match(parse("sub(x, x)"), raw, masked), Refusal)


def test_a_name_that_stands_twice_is_one_list(drawn: Drawn, masked: Program):
    for size, same in (([2, 2], True), ([2, 1], False), ([2], False), ([2, True], False)):
        node = drawn(aten.max_pool2d.default, drawn.a, [2, 2], size)
        assert isinstance(match(parse("max_pool2d(_, k, k)"), node, masked), Match) == same


# Lists and constants


CAT: list[tuple[str, dict[str, str] | None]] = [
    ("cat([*, relu(x)])", {"x": "a"}),
    ("cat([relu(x), *])", None),
    ("cat([y, *, relu(x)])", {"y": "b", "x": "a"}),
    ("cat([*, y, relu(x)], 1)", {"y": "c", "x": "a"}),
    ("cat([y, *], dim=1)", {"y": "b"}),
    ("cat([_, _, _])", {}),
    ("cat([*])", {}),
    ("cat([_, _])", None),
    ("cat([_, _, _, _, *])", None),
    ("cat(x, 1)", {"x": "[b, c, relu_default]"}),
    ("cat(_, [1])", None),
    ("cat(1)", None),
    ("cat(_, 1 | 2)", {}),
]


@pytest.mark.parametrize(("text", "expected"), CAT, ids=[text for text, _ in CAT])
def test_lists(drawn: Drawn, masked: Program, text: str, expected: dict[str, str] | None):
    relu = drawn(aten.relu.default, drawn.a)
    node = drawn(aten.cat.default, [drawn.b, drawn.c, relu], 1)
    found = match(parse(text), node, masked)
    assert (bound(found) if isinstance(found, Match) else None) == expected


def test_what_is_wrong_with_a_list_is_said(drawn: Drawn, masked: Program):
    node = drawn(aten.cat.default, [drawn.b, drawn.c], 1)
    of = [told(match(parse(f"cat({text})"), node, masked))[0] for text in ("[_]", "[_, _, _, *]")]
    assert of == ["the list has length 2, not 1", "the list has length 2, not at least 3"]
    assert told(match(parse("cat(_, [1])"), node, masked))[0] == "1 is not a list"


CONV: list[tuple[str, bool]] = [
    ("groups=1", True),
    ("groups=True", False),
    ("groups=1.0", False),
    ("stride=[2, 2]", True),
    ("stride=(2, 2)", True),
    ("stride=2", True),
    ("stride=[2]", False),
    ("stride=[2, 1]", False),
    ("stride=2.0", False),
    ("padding=[1, 0]", True),
    ("padding=1", False),
    ("padding=[_, 0]", True),
    ("dilation=1", True),
    ("dilation=[1, 1]", True),
    ("bias=None", True),
    ("bias=False", False),
    ("bias=0", False),
]


@pytest.mark.parametrize(("text", "fits"), CONV, ids=[text for text, _ in CONV])
def test_constants_and_defaults(drawn: Drawn, masked: Program, text: str, fits: bool):
    node = drawn(aten.conv2d.default, drawn.a, drawn.w, None, [2, 2], [1, 0])
    assert isinstance(match(parse(f"conv2d(_, W, {text})"), node, masked), Match) == fits


def test_what_a_call_leaves_out_is_its_default(drawn: Drawn, masked: Program):
    node = drawn(aten.linear.default, drawn.a, drawn.w)
    for text in ("linear(_, W)", "linear(_, W, None)", "linear(_, W, b)", "linear(bias=None)"):
        assert isinstance(match(parse(text), node, masked), Match)
    what = ("None is not a parameter", "linear_default")
    assert told(match(parse("linear(_, W, B)"), node, masked)) == what
    what = ("linear has no argument 4", "linear_default")
    assert told(match(parse("linear(_, W, _, _)"), node, masked)) == what


def test_an_argument_by_keyword_alone_has_no_position(drawn: Drawn, masked: Program):
    node = drawn(aten.add.Tensor, drawn.a, drawn.b, alpha=2)
    assert isinstance(match(parse("add(_, _, alpha=2)"), node, masked), Match)
    assert told(match(parse("add(_, _, 2)"), node, masked))[0] == "add has no argument 3"


def test_texts_stand_for_texts_and_for_torchs_names(drawn: Drawn, masked: Program):
    gelu = drawn(aten.gelu.default, drawn.a, approximate="tanh")
    assert isinstance(match(parse("gelu(_, approximate='tanh')"), gelu, masked), Match)
    assert isinstance(match(parse("gelu(_, approximate='none')"), gelu, masked), Refusal)
    cast = drawn(aten._to_copy.default, drawn.a, dtype=torch.float16)
    assert isinstance(match(parse("_to_copy(_, dtype='float16')"), cast, masked), Match)
    assert isinstance(match(parse("_to_copy(_, dtype='float32')"), cast, masked), Refusal)


# Shared values


def test_a_value_inside_must_not_be_read_elsewhere(drawn: Drawn, masked: Program):
    norm = drawn(aten.neg.default, drawn(aten.linear.default, drawn.a, drawn.w))
    node = drawn(aten.relu.default, norm)
    text = "relu(neg(linear(_, W)))"
    assert isinstance(match(parse(text), node, masked), Match)
    other = drawn(aten.gelu.default, norm)
    refusal = match(parse(text), node, masked)
    assert told(refusal) == ("neg's value has 2 users, not only relu", other.name)
    assert isinstance(refusal, Refusal)
    assert refusal.depth == 5
    assert isinstance(match(parse("relu(neg(linear(_, W))!)"), node, masked), Match)
    # The mark is for the call that it follows.
    assert isinstance(match(parse("relu(neg(linear(_, W)!))"), node, masked), Refusal)
    # What ends the match, names and `_` may be read by anyone.
    assert isinstance(match(parse("neg(linear(_, W))"), norm, masked), Match)
    assert isinstance(match(parse("relu(x)"), node, masked), Match)


def test_the_programs_output_is_a_user(drawn: Drawn, masked: Program):
    linear = drawn(aten.linear.default, drawn.a, drawn.w)
    node = drawn(aten.relu.default, linear)
    drawn.graph.output((linear, node))
    what = ("linear's value has 2 users, not only relu", "output")
    assert told(match(parse("relu(linear(_, W))"), node, masked)) == what


def test_users_inside_of_the_match_are_fine(drawn: Drawn, masked: Program):
    sigmoid = drawn(aten.sigmoid.default, drawn.a)
    node = drawn(aten.mul.Tensor, sigmoid, drawn(aten.neg.default, sigmoid))
    assert isinstance(match(parse("mul(sigmoid(x), neg(sigmoid(x)))"), node, masked), Match)
    assert isinstance(match(parse("mul(_, neg(sigmoid(x)))"), node, masked), Match)


# The nearest miss


def test_of_several_attempts_the_deepest_is_told(drawn: Drawn, masked: Program):
    deep = drawn(aten.relu.default, drawn(aten.linear.default, drawn.a, drawn.b))
    node = drawn(aten.add.Tensor, drawn(aten.gelu.default, drawn.a), deep)
    refusal = match(parse("add(relu(linear(_, W)), _)"), node, masked)
    assert told(refusal) == ("b is not a parameter", "linear_default")
    either = match(parse("add(neg(x), y) | add(_, relu(linear(_, W)))"), node, masked)
    assert told(either) == ("b is not a parameter", "linear_default")


def test_of_attempts_as_deep_the_first_is_told(drawn: Drawn, masked: Program):
    node = drawn(aten.neg.default, drawn.a)
    what = ("the operator is neg, not relu", "neg_default")
    assert told(match(parse("relu(x) | gelu(x)"), node, masked)) == what


def test_a_search_gives_up_in_time(drawn: Drawn, masked: Program):
    one, two = drawn.a, drawn.b
    for _ in range(20):
        one, two = drawn(aten.add.Tensor, one, two), drawn(aten.add.Tensor, two, one)
    hopeless = parse("add(" * 20 + "relu(_)" + ", _)!" * 20)
    start = time.process_time()
    assert told(match(hopeless, one, masked)) == (
        "the pattern can fit in too many ways to try",
        one.name,
    )
    assert list(matches(hopeless, drawn.graph, masked)) == []
    assert time.process_time() - start < 10.0


# Over a graph


def test_matches_are_those_of_all_nodes_in_order(drawn: Drawn, masked: Program):
    nodes = [drawn(aten.relu.default, drawn.a), drawn(aten.gelu.default, drawn.a)]
    nodes.append(drawn(aten.relu.default, nodes[0]))
    found = list(matches(parse("relu|gelu(x)"), drawn.graph, masked))
    assert [m.node for m in found] == nodes
    assert [m.node.name for m in matches(parse("W"), drawn.graph, masked)] == [
        "_2_weight", "_2_weight_1", "_0_weight_orig", "mul_tensor",
    ]  # fmt: skip
    assert [m.node.name for m in matches(parse("relu(x) | W"), drawn.graph, masked)] == [
        "_2_weight", "_2_weight_1", "_0_weight_orig", "mul_tensor",
        "relu_default", "relu_default_1",
    ]  # fmt: skip


def test_the_graph_may_be_edited_between_matches(drawn: Drawn, masked: Program):
    first = drawn(aten.relu.default, drawn.a)
    second = drawn(aten.relu.default, first)
    third = drawn(aten.relu.default, second)
    seen: list[Node] = []
    for found in matches(parse("relu(x)"), drawn.graph, masked):
        seen.append(found.node)
        if found.node is first:
            third.replace_input_with(second, first)
            drawn.graph.erase_node(second)
            drawn(aten.relu.default, third)
    assert seen == [first, third]


def test_both_graphs_of_a_program_are_searched():
    both = source_of("modes")
    found = {mode: list(matches(parse("linear(_, W)"), g, both)) for mode, g in both.graphs.items()}
    assert {mode: len(part) for mode, part in found.items()} == {"train": 3, "eval": 2}
