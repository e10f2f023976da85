"""Verdicts: which parameters a rule takes, and what keeps it from the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import functional as prune
from fxprune.errors import SelectError
from fxprune.program.program import Program
from fxprune.recipe.rule import Rule
from fxprune.recipe.selecting import Verdict, verdicts
from tests.tools.helpers import program, source_of

W = ("W",)


def verdicts_on(p: Program, **keys: Any) -> dict[str, Verdict]:
    return {v.site.name: v for v in verdicts(p, Rule(name="r", method="identity", **keys))}


def taken(p: Program, **keys: Any) -> list[str]:
    return [name for name, v in verdicts_on(p, **keys).items() if v.refusal is None]


def capture(module: nn.Module, *inputs: Tensor) -> Program:
    return fxprune.capture(module, inputs)


TAKES: list[tuple[str, str, Any, list[str]]] = [
    ("conv", "conv2d(_, W)", None, ["0.weight"]),
    ("conv", "relu(batch_norm(conv2d(_, W)))", "W", ["0.weight"]),
    ("conv", "relu(batch_norm(conv2d(_, W, B), G))", ["G", "B"], ["0.bias", "1.weight"]),
    ("conv", "(conv2d|linear)(_, W)", None, ["0.weight", "4.weight"]),
    ("conv", "conv2d(_, W) | linear(_, _, W)", None, ["0.weight", "4.bias"]),
    ("conv", "conv2d(_, W) | linear(_, _, B)", ["W", "B"], ["0.weight", "4.bias"]),
    ("conv", "_(bias=W)", None, ["0.bias", "1.bias", "4.bias"]),
    ("conv", "W", None, ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]),
    ("conv", "linear(flatten(relu(_)), W, B)", "W", ["4.weight"]),
    ("tied", "embedding(W, *)", None, ["emb.weight"]),
    ("tied", "linear(embedding(W, _), W)", None, ["emb.weight"]),
    ("modes", "linear(relu(linear(_, V))!, W)", "W", ["head.weight", "aux.weight"]),
    ("twice", "linear(relu(linear(_, W)), W)", None, ["fc.weight"]),
]


@pytest.mark.parametrize(("name", "match", "named", "expected"), TAKES)
def test_a_pattern_takes_what_it_binds_in_any_graph(
    name: str, match: str, named: Any, expected: list[str]
):
    assert taken(source_of(name), match=match, prune=named) == expected


def test_a_value_that_only_one_mode_reads_twice_is_free_in_the_other():
    # In train mode the auxiliary head reads the body as well.
    assert taken(source_of("modes"), match="linear(relu(linear(_, V)), W)", prune="W") == [
        "head.weight"
    ]


@pytest.mark.parametrize("name", ["conv", "tied", "twice"])
def test_a_masked_parameter_is_taken_as_before(name: str):
    masked = program(name)
    for parameter in masked.aliases:
        prune.identity(masked, parameter)
    either = "conv2d(_, W) | embedding(W)"
    for match in ("_(_, W)", "mul(_, W)", either, "linear(relu(linear(_, W)), W)"):
        before = verdicts_on(source_of(name), match=match)
        after = verdicts_on(masked, match=match)
        assert {k: str(v.refusal) for k, v in after.items()} == {
            k: str(v.refusal) for k, v in before.items()
        }


class Sums(nn.Module):
    """Products and sums of parameters, in which either operand may be the one that is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q, self.r = (nn.Parameter(torch.randn(3)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.p + self.q) * x - self.r


def test_every_way_in_which_a_pattern_fits_counts():
    sums = capture(Sums(), torch.randn(2, 3))
    assert taken(sums, match="add(W)") == ["p", "q"]
    assert taken(sums, match="add(W, V)", prune="W") == ["p", "q"]
    assert taken(sums, match="sub(_, W)") == ["r"]


REFUSED: list[tuple[str, str, str, str, str]] = [
    ("conv", "relu(batch_norm(conv2d(_, W)))", "4.weight",
     "it feeds linear, which is not in the pattern", "linear"),
    ("conv", "relu(batch_norm(conv2d(_, W)))", "0.bias",
     "it is bias of conv2d, not weight", "conv2d"),
    ("conv", "relu(batch_norm(conv2d(_, W)))", "1.weight",
     "it is weight of batch_norm, not an argument of conv2d", "batch_norm"),
    ("conv", "relu(conv2d(_, W))", "0.weight",
     "the operator is batch_norm, not relu", "batch_norm"),
    ("conv", "gelu(batch_norm(conv2d(_, W)))", "0.weight",
     "the operator is relu, not gelu", "relu"),
    ("conv", "linear(flatten(_, 2), W)", "4.weight", "1 is not 2", "flatten"),
    ("twice", "linear(tanh(linear(_, W)), _)", "fc.weight",
     "the operator is relu, not tanh", "relu"),
    ("tied", "linear(_, W, B)", "emb.weight", "None is not a parameter", "linear"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "match", "parameter", "reason", "node"), REFUSED)
def test_the_nearest_miss_of_a_parameter(
    name: str, match: str, parameter: str, reason: str, node: str
):
    refusal = verdicts_on(source_of(name), match=match, prune="W")[parameter].refusal
    assert refusal is not None
    assert (refusal.reason, str(refusal.node)) == (reason, node)


def test_a_parameter_that_no_operator_reads_is_refused():
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unread, self.returned = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Any:
            return x + 1, self.returned

    found = verdicts_on(capture(Unread(), torch.ones(3, 2)), match="linear(_, W)")
    assert str(found["unread"].refusal) == "no operator reads it"
    why = "the program returns it, and no operator reads it (node output)"
    assert str(found["returned"].refusal) == why


def test_parts_of_a_recurrent_layer_are_in_its_list():
    lstm = capture(nn.LSTM(2, 3, batch_first=True), torch.randn(4, 5, 2))
    assert taken(lstm, match="lstm(_, _, [W, V, *])", prune="V") == ["weight_hh_l0"]
    found = verdicts_on(lstm, match="lstm(_, _, [W, V, *])", prune="V")
    assert found["bias_ih_l0"].refusal is not None


def test_more_that_holds_is_nearer():
    found = verdicts_on(source_of("conv"), match="gelu(batch_norm(conv2d(_, W)))")
    order = sorted(found, key=lambda name: (-found[name].held, -found[name].nearness))
    assert order[:2] == ["0.weight", "0.bias"]
    select = {"module": ["Conv2d", "Linear"], "param": "weight", "min_numel": 60, "path": "9"}
    held = {name: v.held for name, v in verdicts_on(source_of("conv"), select=select).items()}
    expected = {"0.weight": 3, "0.bias": 1, "1.weight": 1, "1.bias": 0, "4.weight": 2, "4.bias": 1}
    assert held == expected


class Sum(nn.Module):
    """Twenty sums, each of the two before it."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        one, two = x, x * self.p
        for _ in range(20):
            one, two = one + two, two + one
        return one + two


def test_a_pattern_that_can_fit_in_too_many_ways_is_an_error():
    text = "add(" * 20 + "mul(_, W)" + ", _)!" * 20
    with pytest.raises(SelectError, match="can fit in too many ways to try; name fewer operands"):
        verdicts(capture(Sum(), torch.randn(2, 3)), Rule(name="r", match=text, method="identity"))


def test_a_rule_with_a_pattern_prunes_what_it_says():
    rule = {"match": "relu(batch_norm(conv2d(_, W)))", "method": "l1_unstructured", "amount": 0.5}
    masked = fxprune.prune(source_of("conv"), {"rule": [rule]})
    assert list(masked.masks) == ["0.weight"]
    assert int((masked.masks["0.weight"] == 0).sum()) == 36
    refused = dict(masked.records[0].refused)
    assert refused["0.bias"] == "it is bias of conv2d, not weight"
