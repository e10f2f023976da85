"""method: a user's own method decides, as torch.nn.utils.prune would let it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor

import fxprune
from fxprune import functional as prune
from fxprune.errors import PassError, PassTypeError
from fxprune.program.program import Program
from fxprune.rewrite.facts import Importance, Methods, NewMasks
from fxprune.rewrite.registry import create
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.comparing import is_same
from tests.conftest import Golden
from tests.tools.helpers import both_texts, facts_text, program, run, selection, source_of

HERE = __name__


class Below(torch_prune.BasePruningMethod):
    """Prunes what is smaller than a level."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: float = 0.5, sign: int = 1) -> None:
        self.level, self.sign = amount, sign

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
        return default_mask * (self.sign * t >= self.level)


class FirstRow(torch_prune.BasePruningMethod):
    """Prunes the first channel that is alive."""

    PRUNING_TYPE = "structured"
    dim = 0

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
        mask = default_mask.clone()
        mask[0] = 0
        return mask


class NoMethod:
    """Has nothing of a pruning method."""


class Outer:
    """Holds a class."""

    Inner = FirstRow


def computed(p: Program, *names: str, given: list[Any] | None = None, **options: Any) -> NewMasks:
    step = create("method", rule="mine", **options)
    return run(p, step, given=[selection(p, *names), *(given or [])])[0][NewMasks]


def test_masks(golden: Golden):
    found = computed(program("mlp"), "0.weight", "2.weight", method=f"{HERE}:FirstRow")
    golden("method", "rows", both_texts(text(source_of("mlp")), facts_text(found)))


def test_a_class_is_imported_and_made_with_its_arguments():
    p = program("linear")
    found = computed(p, method=f"{HERE}:Below", amount=0.25, args={"sign": -1})
    weight = p.parameter("weight").detach()
    made = dict(found.make())
    assert is_same(made["weight"], (-weight >= 0.25).float())
    assert found.names == ("weight", "bias")


def test_a_class_may_be_inside_another():
    found = computed(program("linear"), "weight", method=f"{HERE}:Outer.Inner")
    assert dict(found.make())["weight"].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_an_instance_is_taken_where_there_is_one():
    p = program("linear")
    given = [Methods({"mine": Below(0.0)}), Importance({"bias": torch.tensor([-1.0, 1.0])})]
    found = computed(p, "bias", given=given, method="no.such.module:Class")
    assert dict(found.make())["bias"].tolist() == [0, 1]


def test_a_method_sees_what_is_alive():
    p = program("linear")
    prune.ln_structured(p, "weight", 1, 2, 0)
    found = computed(p, "weight", method=f"{HERE}:FirstRow")
    assert not dict(found.make())["weight"].any()
    assert p.masks["weight"].any()


def test_an_unstructured_method_ranks_globally():
    p = prune.l1_unstructured(program("mlp"), "2.bias", 1)
    found = computed(p, "0.weight", "2.bias", method=f"{HERE}:Below", amount=0.5, scope="global")
    made = dict(found.make())
    assert is_same(made["0.weight"], (p.value("0.weight") >= 0.5).float())
    assert is_same(made["2.bias"], p.masks["2.bias"] * (p.value("2.bias") >= 0.5))
    with pytest.raises(PassTypeError, match="global scope takes unstructured methods only; First"):
        computed(p, "0.weight", method=f"{HERE}:FirstRow", scope="global")


def test_without_parameters_no_mask_is_made():
    for scope in ("local", "global"):
        found = computed(program("mlp"), "none", method=f"{HERE}:Below", scope=scope)
        assert dict(found.make()) == {}


MISSING: list[tuple[str, type[Exception], str]] = [
    ("no.such.module:Class", PassError, "No module named 'no'"),
    (f"{HERE}:Missing", PassError, "has no attribute 'Missing'"),
    (f"{HERE}:Outer.Missing", PassError, "has no attribute 'Missing'"),
    (f"{HERE}:NoMethod", PassTypeError, "is no subclass of torch.nn.utils.prune.BasePruningMethod"),
    (f"{HERE}:HERE", PassTypeError, "is no subclass of torch.nn.utils.prune.BasePruningMethod"),
]


@pytest.mark.parametrize(("method", "error", "message"), MISSING)
def test_what_cannot_be_imported_is_named(method: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message) as caught:
        computed(program("linear"), method=method)
    assert str(caught.value).startswith("rule 'mine': ")
    assert repr(method) in str(caught.value)


def test_arguments_that_a_class_does_not_take_are_named():
    with pytest.raises(PassError, match=r"rule 'mine': .*Below.*unexpected keyword argument 'n'"):
        computed(program("linear"), method=f"{HERE}:Below", args={"n": 2})
    with pytest.raises(PassError, match=r"rule 'mine': .*FirstRow"):
        computed(program("linear"), method=f"{HERE}:FirstRow", amount=0.5)


def test_a_recipe_imports_a_method_only_where_it_may():
    rule = {"select": "weight", "method": f"{HERE}:FirstRow"}
    p = program("linear")
    masked = fxprune.prune(p, {"rule": [rule]}, allow_imports=True)
    assert masked.masks["weight"].tolist() == [[0, 0, 0], [1, 1, 1]]
    with pytest.raises(fxprune.FxpruneError, match="allow"):
        fxprune.prune(p, {"rule": [rule]})
