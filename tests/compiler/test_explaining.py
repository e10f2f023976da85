"""explain: which rules take a parameter, the first condition that keeps the others, and why."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

import fxprune
from fxprune.compiler.dry_run import explain, plan
from fxprune.errors import MissingParameterError, PassError, RecipeError, SelectError
from fxprune.program.program import Program
from fxprune.program.uses import source_line
from fxprune.reports.explanation import RuleExplanation
from fxprune.testing.comparing import is_same
from tests.models.zoo import ZOO
from tests.tools.helpers import program
from tests.tools.profiles import examples

L1: dict[str, Any] = {"select": "*.weight", "method": "l1_unstructured", "amount": 0.5}
GLOBAL: dict[str, Any] = {**L1, "scope": "global"}
CHANNELS: dict[str, Any] = {**L1, "method": "ln_structured", "n": 2, "dim": 0}


def lenet() -> Program:
    model, args, _ = ZOO["lenet"]()
    return fxprune.capture(model, args)


@pytest.fixture(scope="module")
def captured() -> Program:
    return lenet()


def row(model: nn.Module, name: str, *rules: dict[str, Any], **options: Any) -> RuleExplanation:
    """What the last rule does to a parameter."""
    return explain(model, {"rule": list(rules)}, name, **options)[name].rules[-1]


# Conditions


CONDITIONS: dict[str, tuple[Any, str]] = {
    "op": ({"op": "linear"}, "conv2d"),
    "role": ({"role": "bias"}, "weight"),
    "module": ({"module": "Linear"}, "Conv2d"),
    "path": ({"path": "fc*"}, "path 'fc\\*'"),
    "regex": ({"regex": "^fc"}, "regex '\\^fc'"),
    "param": ({"param": "bias"}, "bias"),
    "exclude": ({"exclude": "conv1.*"}, "exclude 'conv1"),
    "min_numel": ({"min_numel": 151}, "150"),
    "ndim": ({"ndim": 2}, "4 dimensions"),
    "dtype": ({"dtype": "float64"}, "float32"),
}


@pytest.mark.parametrize("key", CONDITIONS)
def test_the_condition_that_fails_is_told(key: str, captured: Program) -> None:
    select, told = CONDITIONS[key]
    found = row(captured, "conv1.weight", {**L1, "select": select})
    assert not found.matched
    assert re.search(told, str(found.reason))
    assert found.units is found.alive is found.pruned is None


def test_only_the_first_condition_that_fails_is_told(captured: Program) -> None:
    rule = {**L1, "select": {"op": "conv2d", "param": "bias", "ndim": 2}}
    found = row(captured, "conv1.weight", rule)
    assert "bias" in str(found.reason)
    assert "dimensions" not in str(found.reason)
    assert found.held > 0


def test_a_pattern_is_explained_with_node_and_line(captured: Program) -> None:
    rule = {**L1, "match": "relu(conv2d(_, W))", "prune": "W"}
    del rule["select"]
    taken = row(captured, "conv1.weight", rule)
    assert taken.matched
    assert taken.pruned == 75
    left = row(captured, "fc1.weight", rule)
    assert not left.matched
    assert left.node is not None
    assert re.fullmatch(r".*zoo_vision\.py:\d+", str(left.line))
    assert str(left) == f"{left.reason} (node {left.node}, {left.line})"


def test_the_line_is_that_of_the_code(tmp_path: Path) -> None:
    lines = {node.name: source_line(node) for node in lenet().graph.nodes}
    source = Path(str(lines["conv2d"]).rpartition(":")[0]).read_text().splitlines()
    at = {
        name: source[int(str(lines[name]).rpartition(":")[2]) - 1] for name in lines if lines[name]
    }
    assert "self.conv1(x)" in at["conv2d"]
    assert "self.fc3(x)" in at["linear_2"]
    assert at["conv1_weight"] == at["conv2d"], "a read is where its first user is"
    assert lines["output"] is None
    assert source_line(None) is None


# What a rule does


def test_what_a_rule_does_is_what_the_plan_says(captured: Program) -> None:
    recipe = {"rule": [GLOBAL, {**CHANNELS, "select": {"ndim": 4}}, {**L1, "select": "fc1.*"}]}
    planned, found = plan(captured, recipe), explain(captured, recipe)
    assert [each.name for each in found.parameters] == list(captured.aliases)
    for each in found.parameters:
        for told, rule in zip(each.rules, planned.rules, strict=True):
            cuts = {cut.name: (cut.alive, cut.pruned) for cut in rule.parameters}
            assert told.matched == (each.name in cuts)
            assert (told.alive, told.pruned) == cuts.get(each.name, (None, None))
        assert each.matched == tuple(told for told in each.rules if told.matched)
    assert found["conv1.weight"].pruned
    assert not found["conv1.bias"].pruned


@examples(10, 20)
@given(st.lists(st.sampled_from([L1, GLOBAL, CHANNELS]), min_size=1, max_size=3), st.data())
def test_the_rules_that_take_a_parameter_are_those_that_prune_it(
    rules: list[dict[str, Any]], data: st.DataObject
) -> None:
    captured = lenet_once()
    selects = [{"ndim": 4}, {"ndim": 2}, "fc*.weight", {"op": "linear", "param": "weight"}]
    drawn = [{**rule, "select": data.draw(st.sampled_from(selects))} for rule in rules]
    found = explain(captured, {"rule": drawn})
    masked = fxprune.prune(captured, {"rule": drawn})
    for each in found.parameters:
        took = [told.rule for told in each.rules if told.matched]
        names = [r.rule for r in masked.records if each.name in {p.name for p in r.parameters}]
        assert took == names
        zeros = sum(told.pruned or 0 for told in each.rules)
        assert (zeros > 0) == (
            each.name in masked.masks and bool((masked.masks[each.name] == 0).any())
        )


_LENET: list[Program] = []


def lenet_once() -> Program:
    if not _LENET:
        _LENET.append(lenet())
    return _LENET[0]


UNPRUNED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "amount": ([{**L1, "amount": 0}], "prunes nothing: amount is 0"),
    "rounding": ([{**L1, "amount": 0.001}], "prunes nothing: 0.001 of 150 living entries rounds"),
    "channels": (
        [{**CHANNELS, "select": {"ndim": 4}, "amount": 0.05}],
        "prunes nothing: 0.05 of 6 living channels rounds to 0",
    ),
    "earlier": (
        [{**L1, "name": "all", "amount": 1.0}, L1],
        "prunes nothing: no entries are alive: all took all",
    ),
    "identity": ([{"select": "*", "method": "identity"}], "prunes nothing: identity masks nothing"),
    "together": (
        [{**GLOBAL, "amount": 3}],
        r"prunes nothing: its scores are not among the 3 smallest of the rule's parameters \(thr",
    ),
    "rounding together": ([{**GLOBAL, "amount": 0.0}], "prunes nothing: amount is 0.0"),
}


@pytest.mark.parametrize("case", UNPRUNED)
def test_why_a_parameter_that_is_taken_stays_is_told(case: str, captured: Program) -> None:
    rules, told = UNPRUNED[case]
    found = row(captured, "conv1.weight", *rules)
    assert (found.matched, found.pruned) == (True, 0)
    assert re.search(told, str(found))


def test_given_masks_and_scores_are_used() -> None:
    twice = program("twice")
    recipe = fxprune.Recipe(rules=[fxprune.Rule(select="fc.weight", method="custom_from_mask")])
    found = explain(twice, recipe, "fc.weight", masks={"fc.weight": torch.ones(3, 3)})
    assert "the mask keeps all that is alive" in str(found)
    found = explain(twice, recipe, "fc.weight", masks={"fc.weight": torch.eye(3)})
    assert "custom_from_mask, local: prunes 6 of 9 living entries" in str(found)
    scores = {"fc.weight": torch.zeros(3, 3), "fc.bias": torch.ones(3)}
    rule = {**GLOBAL, "select": "*", "amount": 9}
    assert row(twice, "fc.weight", rule, importance_scores=scores).pruned == 9
    assert row(twice, "fc.bias", rule, importance_scores=scores).pruned == 0


def test_rules_of_a_group_are_explained_one_by_one(captured: Program) -> None:
    shared = {**GLOBAL, "group": "g"}
    convs, linears = {**shared, "select": "conv*.weight"}, {**shared, "select": "fc*.weight"}
    found = explain(captured, {"rule": [convs, linears]}, "conv1.weight")["conv1.weight"]
    assert [told.matched for told in found.rules] == [True, False]
    assert "global, group g, amount 0.5: prunes 21 of 150" in str(found.rules[0])
    assert "path 'fc*.weight'" in str(found.rules[1].reason)


# Rules that fail


def test_a_rule_that_fails_is_explained_and_the_others_are_tried(captured: Program) -> None:
    rules = [
        {**L1, "select": "conv9.weight"},
        {**L1, "amount": 10**6},
        {**CHANNELS, "select": "*"},
        L1,
    ]
    found = explain(captured, {"rule": rules})
    assert [rule for rule, _ in found.faults] == ["rule-1", "rule-2", "rule-3"]
    told = [str(each) for each in found["conv1.weight"].rules]
    assert "path 'conv9.weight'" in told[0]
    assert "the rule fails: amount=1000000 is more than the 150 entries" in told[1]
    assert "the rule fails: 'conv1.bias' has shape (6,)" in told[2]
    assert "prunes 75 of 150" in told[3]
    assert "\nfails: rule 'rule-1' selects nothing" in str(found)
    with pytest.raises(SelectError):
        fxprune.prune(captured, {"rule": rules})


def test_a_program_without_values_is_explained_as_far_as_it_goes() -> None:
    twice = copy.deepcopy(program("twice")).to("meta")
    found = explain(twice, {"rule": [L1]})
    assert [told.matched for each in found.parameters for told in each.rules] == [True, False]
    assert "meta device" in str(found["fc.weight"].rules[0])


def test_what_is_at_fault_in_the_recipe_is_an_error(captured: Program) -> None:
    with pytest.raises(RecipeError, match="amuont"):
        explain(captured, {"rule": [{**L1, "amuont": 1}]})
    with pytest.raises(RecipeError, match="allow_imports"):
        explain(captured, {"rule": [{**L1, "method": "a.b:C"}]})
    found = explain(captured, {"rule": [{**L1, "method": "a.b:C"}]}, allow_imports=True)
    assert "No module named 'a'" in found.faults[0][1]


# Names


def test_any_name_finds_a_tied_parameter() -> None:
    tied = program("tied")
    for name in ("emb.weight", "out.weight"):
        found = explain(tied, {"rule": [{**L1, "select": "out.*"}]}, name)
        assert [each.name for each in found.parameters] == ["emb.weight"]
        assert found[name].rules[0].matched
        assert found[name].aliases == ("emb.weight", "out.weight")


def test_names_are_explained_once_in_the_order_asked(captured: Program) -> None:
    found = explain(captured, {"rule": [L1]}, "fc1.weight", "conv1.bias", "fc1.weight")
    assert [each.name for each in found.parameters] == ["fc1.weight", "conv1.bias"]
    with pytest.raises(MissingParameterError, match=r"'conv2\.bias' is not explained here"):
        found["conv2.bias"]


def test_an_unknown_name_suggests_the_nearest(captured: Program) -> None:
    with pytest.raises(MissingParameterError, match=r"did you mean 'conv1\.weight'"):
        explain(captured, {"rule": [L1]}, "conv1.wieght")


# What it gives, and leaves


def test_as_text_table_and_json(golden: Any, captured: Program) -> None:
    filters = {**CHANNELS, "select": {"op": "conv2d", "param": "weight"}}
    rules = [GLOBAL, filters, {**L1, "select": "fc9.*", "optional": True}]
    found = explain(captured, {"rule": rules}, "conv2.weight", "fc1.bias")
    golden("explaining", "lenet", re.sub(r"\S+/(?=zoo_vision\.py)", "", str(found)))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(found.table())
    assert console.export_text().split() == str(found).split()
    data = json.loads(found.to_json())
    assert list(data) == ["parameters", "faults"]
    first = data["parameters"][0]
    assert first["name"] == "conv2.weight"
    assert first["uses"] == [["conv2d", "weight"]]
    assert [rule["matched"] for rule in first["rules"]] == [True, True, False]
    assert first["rules"][1]["pruned"] == 8


def test_nothing_is_changed() -> None:
    model, args, kwargs = ZOO["attention"]()
    captured = fxprune.capture(model, args, kwargs)
    rule = {**L1, "select": {"ndim": 2}, "method": "random_unstructured"}
    before = [copy.deepcopy(each.state_dict()) for each in (model, captured)]
    state, code = torch.get_rng_state(), captured.code
    by_model = explain(model, {"rule": [rule]}, args=args, kwargs=kwargs)
    assert str(by_model) == str(explain(captured, {"rule": [rule]}))
    assert is_same([model.state_dict(), captured.state_dict()], before)
    assert torch.equal(torch.get_rng_state(), state)
    assert captured.code == code
    assert not captured.masks
    assert not captured.records


def test_a_plan_is_explained_as_its_recipe(captured: Program) -> None:
    planned = plan(captured, {"rule": [GLOBAL]})
    assert str(explain(captured, planned)) == str(explain(captured, {"rule": [GLOBAL]}))
    with pytest.raises(PassError):
        fxprune.prune(program("twice"), planned)
