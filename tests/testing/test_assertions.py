"""The assertions: each passes where it should, and tells of each kind of fault."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import AmountError, FxpruneError
from fxprune.passes.fold_masks import FoldMasks, UnmaskParameters
from fxprune.passes.mask import InsertMasks
from fxprune.program.program import Program
from fxprune.rewrite.pattern import Refusal
from fxprune.rewrite.rewriter import rule
from fxprune.testing.assert_pass import (
    assert_frozen,
    assert_idempotent,
    assert_promise,
    assert_pure,
    assert_refuses,
    assert_transactional,
)
from fxprune.testing.calls import Call
from fxprune.testing.comparing import DifferenceError, assert_close, assert_same
from fxprune.testing.parity import assert_parity
from tests.testing import planted
from tests.tools.helpers import inputs, model, program

HALF = {"rule": [{"select": "*.weight", "method": "l1_unstructured", "amount": 0.5}]}


def masked(name: str = "mlp") -> Program:
    return fxprune.prune(program(name), HALF)


# assert_same, assert_close


@pytest.mark.smoke
def test_equal_models_and_values_are_the_same():
    assert_same(program("conv"), model("conv"), inputs("conv"))
    assert_same(fxprune.finalize(masked()), masked())
    assert_same({"y": [torch.tensor(float("nan"))]}, {"y": [torch.tensor(float("nan"))]})


@pytest.mark.parametrize(
    ("after", "before", "told"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), r"entry \(1,\): 2\.0 and 3\.0; 1 of"),
        (torch.tensor(-0.0), torch.tensor(0.0), r"at the top: -0\.0 and 0\.0"),
        ([torch.ones(1)], [torch.ones(1).double()], r"at \[0\]: float32 .* and float64"),
        ([torch.ones(1)], (torch.ones(1),), "the structures differ"),
        ({"a": 1}, {"a": 2}, r"at \['a'\]: 1 and 2"),
        (torch.ones(2), torch.ones(3), r"float32 \(2,\).*float32 \(3,\)"),
    ],
)
def test_a_value_that_differs_is_told(after: Any, before: Any, told: str):
    with pytest.raises(DifferenceError, match=told):
        assert_same(after, before)


def test_a_program_that_differs_is_told_by_node_entry_and_parameter():
    changed = program("mlp")
    with torch.no_grad():
        changed.parameter("2.weight")[1, 3] += 0.5
    with pytest.raises(DifferenceError) as caught:
        assert_same(changed, program("mlp"))
    told = str(caught.value)
    assert "the first node that differs is _2_weight, the parameter '2.weight'" in told
    assert "\noutput at the top, entry (" in told
    assert "the first parameter that differs is '2.weight', entry (1, 3): " in told
    assert isinstance(caught.value, AssertionError)


def test_a_module_without_inputs_cannot_be_compared():
    with pytest.raises(FxpruneError, match="no input to compare on"):
        assert_same(model("mlp"), model("mlp"))


def test_close_is_a_bound():
    nearly = program("mlp")
    with torch.no_grad():
        nearly.parameter("2.bias")[0] += 1e-4
    assert_close(nearly, program("mlp"), bound=1e-3)
    with pytest.raises(DifferenceError, match=r"differs by up to 0\.0001"):
        assert_close(nearly, program("mlp"), bound=1e-5)
    assert_close(torch.ones(2), torch.ones(2) + 1e-6, bound=1e-5)
    with pytest.raises(DifferenceError, match=r"differs by up to 0\.5: at the top, entry \(1,\)"):
        assert_close(torch.tensor([1.0, 1.5]), torch.ones(2), bound=0.1)


# assert_parity


RECIPES = [
    {"select": "*.weight", "method": "l1_unstructured", "amount": 0.4},
    {"select": "*.weight", "method": "l1_unstructured", "amount": 0.4, "scope": "global"},
    {"select": "*.weight", "method": "random_unstructured", "amount": 3, "scope": "global"},
    {"select": "*.weight", "method": "random_unstructured", "amount": 0.4, "seed": 3},
    {"select": {"ndim": 2}, "method": "ln_structured", "n": 1, "dim": 1, "amount": 0.3},
    {"select": {"ndim": 2}, "method": "random_structured", "amount": 1},
    {"select": "*", "method": "identity"},
    {"match": "linear(_, W, *)", "prune": "W", "method": "l1_unstructured", "amount": 10**6},
]


@pytest.mark.parametrize("keys", RECIPES, ids=lambda keys: f"{keys['method']}-{len(keys)}")
@pytest.mark.parametrize("name", ["mlp", "conv", "tied"])
def test_every_method_of_a_recipe_is_torchs(keys: dict[str, Any], name: str):
    if keys.get("amount") == 10**6 and name == "conv":
        pytest.skip("the same refusal")
    recipe = {"rule": [{**keys, "optional": True}]}
    assert_parity(model(name), recipe, inputs(name), program=program(name))


def test_groups_and_rules_on_the_same_parameters_are_torchs():
    keys = {"method": "l1_unstructured", "scope": "global", "group": "all", "amount": 5}
    rules = [
        {"select": "0.weight", **keys},
        {"select": "0.bias", "method": "random_unstructured", "amount": 0.5, "seed": 1},
        {"select": "2.weight", **keys},
        {"select": "*.weight", "method": "random_unstructured", "amount": 0.5},
    ]
    assert_parity(model("mlp"), {"rule": rules}, inputs("mlp"))


def test_calls_are_torchs_and_the_model_stays():
    source = model("mlp")
    before = copy.deepcopy(source.state_dict())
    calls = [Call("l1_unstructured", ("0.weight",)), Call("remove", ("0.weight",))]
    assert_parity(source, calls, *inputs("mlp"))
    assert_same(dict(source.state_dict()), dict(before))


def _edited(edit: Callable[[Program], Any]) -> Callable[..., Program]:
    prune = fxprune.prune

    def pruned(program: Program, recipe: Any, **options: Any) -> Program:
        found = prune(program, recipe, **options)
        edit(found)
        return found

    return pruned


FAULTS: dict[str, tuple[Callable[[Program], Any], str]] = {
    "another mask": (lambda p: p.masks["0.weight"].fill_(1), r"masks: at \['0\.weight'\], entry"),
    "a draw": (lambda p: torch.rand(1), "generator"),
    "a bias": (lambda p: p.parameter("0.bias").data.add_(1), "state dict: at .*0.bias.*, entry"),
    "an unmasked one": (lambda p: fxprune.unmask(p, "0.weight", inplace=True), "masks"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_prune_is_told(monkeypatch: pytest.MonkeyPatch, fault: str):
    edit, told = FAULTS[fault]
    monkeypatch.setattr("fxprune.testing.parity.prune", _edited(edit))
    with pytest.raises(DifferenceError, match=f"after the recipe: .*{told}"):
        assert_parity(model("mlp"), HALF, inputs("mlp"), program=program("mlp"))


def test_magnitudes_are_compared_where_ties_are_fxprunes_own(monkeypatch: pytest.MonkeyPatch):
    def flip(found: Program) -> None:
        mask = found.masks["0.weight"]
        dead, alive = (mask == 0).nonzero()[0], (mask == 1).nonzero()[0]
        mask[tuple(dead)], mask[tuple(alive)] = 1, 0

    monkeypatch.setattr("fxprune.testing.oracle.prune", _edited(flip))
    with pytest.raises(
        DifferenceError, match=r"magnitudes pruned of 0\.weight with ties = 'index'"
    ):
        assert_parity(model("mlp"), HALF, inputs("mlp"), program=program("mlp"))


def test_what_torch_has_no_counterpart_of_is_refused():
    rule = {"select": {"ndim": 2}, "method": "ln_structured", "n": 2, "amount": 1, "coupled": True}
    with pytest.raises(FxpruneError, match="torch prunes no channels together"):
        assert_parity(model("mlp"), {"rule": [rule]}, inputs("mlp"))


# Assertions on passes


def test_a_good_pass_passes_every_assertion():
    source = masked()
    for step in (FoldMasks(), UnmaskParameters(("0.weight",))):
        assert_promise(source, step)
        assert_transactional(source, step)
        assert_pure(source, step)
        assert_frozen(source, step)
    assert_idempotent(source, FoldMasks())
    assert_idempotent(source, fxprune.finalize)


def test_a_broken_promise_is_told_by_the_first_node():
    net = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.ReLU())
    source = fxprune.capture(net, (torch.randn(3, 2),))
    with pytest.raises(DifferenceError, match="promised equal outputs"):
        assert_promise(source, planted.DropAny())


def test_a_read_past_a_mask_is_a_broken_promise():
    with pytest.raises(DifferenceError, match=r"node _0_weight reads '0\.weight' past its mask"):
        assert_promise(program("mlp"), planted.MasksHalfway())


def test_a_second_run_that_edits_is_told():
    with pytest.raises(
        DifferenceError, match=r"a second run of wraps makes 4 edits: the first node"
    ):
        assert_idempotent(program("mlp"), planted.Wraps())
    with pytest.raises(
        DifferenceError, match=r"a second run gives another Program: at \['0.weight'\]"
    ):
        assert_idempotent(program("mlp"), _doubled)


def _doubled(source: Program) -> Program:
    with torch.no_grad():
        source.parameter("0.weight").mul_(2)
    return source


def test_what_fails_cleanly_is_transactional():
    too_many = {"rule": [*HALF["rule"], {**HALF["rule"][0], "amount": 10**6}]}
    assert_transactional(
        program("mlp"), lambda p: fxprune.prune(p, too_many, inplace=True), raises=AmountError
    )


def _raising(edit: Callable[[Program], Any]) -> Callable[[Program], Any]:
    def act(source: Program) -> None:
        edit(source)
        raise ValueError("as planned")

    return act


LEFT: dict[str, tuple[Callable[[Program], Any], str]] = {
    "a value": (lambda p: p.parameter("2.bias").data.fill_(9), r"'2\.bias', entry \(0,\): "),
    "a buffer": (lambda p: p.register_buffer("extra", torch.ones(1)), "'extra' came or went"),
    "a mask": (lambda p: fxprune.prune(p, HALF, inplace=True), "came or went"),
    "a node": (lambda p: _spoil_graph(p), "the graph: '"),
    "a flag": (lambda p: p.get_submodule("0").eval(), "an attribute of '0': 'training' changed"),
    "an object": (
        lambda p: p.get_submodule("0").register_parameter(
            "weight", nn.Parameter(p.parameter("0.weight").detach().clone())
        ),
        "the parameters' identity",
    ),
    "torch's generator": (lambda p: torch.rand(1), "generator of torch was drawn from"),
    "python's generator": (lambda p: random.random(), "generator of random was drawn from"),
    "numpy's generator": (lambda p: np.random.rand(1), "generator of numpy was drawn from"),
}


def _spoil_graph(source: Program) -> None:
    node = next(n for n in source.graph.nodes if n.op == "call_function")
    node.target = torch.ops.aten.abs.default


@pytest.mark.parametrize("fault", LEFT)
def test_what_a_failure_leaves_is_told(fault: str):
    edit, told = LEFT[fault]
    with pytest.raises(DifferenceError, match=f"what failed left the Program changed: .*{told}"):
        assert_transactional(program("mlp"), _raising(edit))


def test_what_does_not_fail_is_told():
    with pytest.raises(DifferenceError, match="what failed raised no AmountError"):
        assert_transactional(program("mlp"), lambda p: None, raises=AmountError)


def test_a_pass_that_writes_before_it_fails_is_told():
    with pytest.raises(
        DifferenceError, match=r"failed after edit 1 of 1, left .*'0\.weight', entry"
    ):
        assert_transactional(program("mlp"), planted.WritesAndMasks())


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (planted.ChangesTensors(), r"changed the caller's Program: '0\.weight', entry \(0, 0\): "),
        (planted.DrawsAnyway(), "the global generator of torch was drawn from"),
        (planted.Counts(), "another run of counts gives another Program: the first node"),
    ],
)
def test_an_impure_pass_is_told(step: Any, told: str):
    with pytest.raises(DifferenceError, match=told):
        assert_pure(program("mlp"), step)


def test_a_pass_may_draw_if_it_says_so():
    assert_pure(program("mlp"), planted.DrawsAnyway(), random=True)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (planted.EditsFacts(), "put another Selection in the place"),
        (planted.NotFrozen(), "NotFrozen is no frozen dataclass"),
    ],
)
def test_facts_and_passes_that_are_not_frozen_are_told(step: Any, told: str):
    with pytest.raises(DifferenceError, match=told):
        assert_frozen(program("mlp"), step)


def test_a_pass_whose_facts_nobody_gives_is_refused():
    with pytest.raises(FxpruneError, match="the pass 'mask' needs NewMasks; give it by given="):
        assert_promise(program("mlp"), InsertMasks())


def unmask_first(source: Program) -> Program:
    return fxprune.unmask(source, "0.weight")


@rule("relu(x)", name="keeps-relu")
def keeps_relu(rw: Any, node: Any, x: Any) -> Refusal:
    return Refusal("relu is wanted", node)


def test_refusals_are_found_by_reason_and_node():
    source = program("mlp")
    assert_refuses(source, keeps_relu, "relu is wanted", "relu")
    assert_refuses(source, [keeps_relu], "relu is wanted")
    assert_refuses(source, planted.RefusesAll(), "it takes nothing")
    assert_refuses(source, unmask_first, "0.weight")


@pytest.mark.parametrize(
    ("step", "reason", "node"),
    [
        (keeps_relu, "another reason", None),
        (keeps_relu, "relu is wanted", "linear"),
        (FoldMasks(), "relu is wanted", None),
        (lambda p: fxprune.finalize(p), "relu is wanted", None),
    ],
)
def test_another_refusal_or_none_is_told(step: Any, reason: str, node: str | None):
    with pytest.raises(DifferenceError, match=f"not refused: '{reason}.*; refused: "):
        assert_refuses(program("mlp"), step, reason, node)
