"""Transfer rules: a network with each operator behind a half dead convolution, and shrunk."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch.fx.node import Node

import fxprune
from fxprune.channels import Flow, flow
from fxprune.program.program import Program
from fxprune.rewrite import Refusal
from tests.conftest import Golden
from tests.models.shrink_nets import Drawn, Net
from tests.models.shrink_steps import STEPS
from tests.tools.profiles import thorough_but
from tests.tools.shrink_checks import BOUND, gap, record_text, shrink_and_check

# Whole groups must be dead where groups go; else the same places of both halves are.
_LAST_HALF = {"pixel_shuffle", "group_norm", "attention"}
each_kind = pytest.mark.parametrize("kind", sorted(STEPS))

# What stays where the operator is in the way: the node, and a part of the reason.
REFUSED = {
    "layer_norm": ("layer_norm", "a norm counts all channels"),
    "softmax": ("softmax", "runs over all channels"),
    "cumsum": ("cumsum", "runs over all channels"),
    "mean_over": ("mean", "all channels are joined"),
    "amax": ("amax", "all channels are joined"),
    "roll": ("roll", "it is rolled"),
    "sort": ("sort", "runs over all channels"),
    "unbind": ("unbind", "read one by one"),
    "in_place_view": ("fill_", "other names"),
    "gram": ("mean", "all channels are joined"),
    "pad": ("linear", "a live channel is read with weights"),
}


@cache
def captured(kind: str, head: str) -> Program:
    net = Net(Drawn(((kind, 3),), head=head, stem=8)).double()
    return fxprune.capture(net, (torch.randn(2, 3, 6, 6, dtype=torch.float64),)).eval()


def program_with(kind: str, head: str = "mean", *, bias: bool = False) -> Program:
    """Return an operator behind a convolution of which half the channels are dead.

    Args:
        kind: of the step.
        head: what follows.
        bias: whether the dead channels have a bias that is alive.
    """
    program = copy.deepcopy(captured(kind, head))
    dead = [4, 5, 6, 7] if kind in _LAST_HALF else [1, 3, 5, 7]
    with torch.no_grad():
        for name in ("stem.weight",) if bias else ("stem.weight", "stem.bias"):
            program.parameter(name)[dead] = 0
    return program


@each_kind
def test_what_is_cut_behind_an_operator(kind: str, golden: Golden):
    _, record = shrink_and_check(program_with(kind))
    golden("shrink", kind, record_text(record))


@each_kind
@pytest.mark.parametrize("head", thorough_but(["mean"], ["mean", "flat", "images"]))
def test_the_function_is_kept(kind: str, head: str):
    program = program_with(kind, head, bias=True)
    small, _ = shrink_and_check(program)
    assert gap(program, small, (1, 3)) < BOUND


@each_kind
def test_a_second_shrink_cuts_nothing(kind: str):
    small, _ = shrink_and_check(program_with(kind))
    again, record = shrink_and_check(small)
    assert record.maps == ()
    assert record.folded == ()
    assert str(again.graph) == str(small.graph)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_is_in_the_way_is_named(kind: str):
    node, reason = REFUSED[kind]
    _, record = shrink_and_check(program_with(kind))
    told = [(stay.node or "", stay.reason, stay.line) for stay in record.stays if stay.count == 8]
    told += [(block.node, block.reason, block.line) for block in record.blocked]
    lines = [line for name, why, line in told if node in name and reason in why]
    assert lines != []
    assert all(line is not None and ".py:" in line for line in lines)


def test_a_rule_may_return_a_refusal(monkeypatch: pytest.MonkeyPatch):
    def refuse(flow: Flow, node: Node) -> Refusal:
        return Refusal("it is not followed today", node)

    monkeypatch.setitem(flow._RULES, "relu", refuse)
    _, record = shrink_and_check(program_with("relu"))
    assert ("relu", "it is not followed today") in [(b.node, b.reason) for b in record.blocked]
