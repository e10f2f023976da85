"""Passes and scores of other distributions in a recipe: options, promises, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import InvariantError, PassError, RecipeError
from fxprune.recipe.recipe import PassCall, Recipe
from fxprune.rewrite.registry import NO_DEFAULT, describe, list_passes
from fxprune.testing.assert_pass import snapshot
from tests.tools.breaking import FAULTS, Close, Net
from tests.tools.foreign import installed

RULE = {"name": "weights", "select": "*.weight", "method": "l1_unstructured", "amount": 0.5}
SCORE: dict[str, Any] = {"select": "*.weight", "granularity": "element", "amount": 0.5}


@pytest.fixture(autouse=True)
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed(monkeypatch):
        yield


@pytest.fixture
def program() -> fxprune.Program:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4))
    return fxprune.capture(nn.Sequential(*layers), (torch.randn(3, 4),))


def recipe(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"rule": [RULE], "pass": list(calls), **more}


def test_calls_run_after_the_rules_in_order(program: fxprune.Program):
    steps: list[str] = []
    calls = ({"name": "look"}, {"name": "use"}, {"name": "halve"})
    masked = fxprune.prune(program, recipe(*calls), on_pass=steps.append)
    assert steps[-4:] == ["weights: mask", "passes: look", "passes: use", "passes: halve"]
    done = fxprune.report(masked).passes
    found = [(each.name, each.promise, each.edits) for each in done]
    assert found == [("look", "changes", 0), ("use", "same", 0), ("halve", "changes", 2)]
    assert len(fxprune.report(masked).rules) == 1
    assert copy.deepcopy(masked).captured.passes == done


def test_the_report_holds_what_passes_did(program: fxprune.Program):
    found = fxprune.report(
        fxprune.prune(program, recipe({"name": "unmade", "args": {"number": 2}}))
    )
    assert '"args": {\n        "number": 2\n      }' in found.to_json()
    assert found.seconds["unmade"] >= 0


@pytest.mark.parametrize("finalize", [{}, {"finalize": {}}, {"finalize": {"zeros": "clean"}}])
@pytest.mark.parametrize("call", ["halve", "use"])
def test_compile_certifies_what_passes_made(
    program: fxprune.Program, finalize: dict[str, Any], call: str
):
    calls = [{"name": "look"}, {"name": call}]
    result = fxprune.compile(program, recipe(*calls, **finalize))
    assert result.certificate.ok
    x = torch.randn(3, 4)
    program.eval()
    masked = fxprune.prune(program, {"rule": [RULE]})
    same = torch.equal(result.program.eval()(x), masked.eval()(x))
    assert same == (call == "use")


def test_a_pass_that_breaks_its_promise_in_train_mode_alone_is_refused(program: fxprune.Program):
    before = snapshot(program)
    with pytest.raises(InvariantError, match=r"'drop-dropout' promised equal outputs.*\n?.*train"):
        fxprune.prune(program, recipe({"name": "drop-dropout"}), inplace=True)
    assert snapshot(program) == before


def test_a_pass_that_leaves_the_program_broken_is_refused(program: fxprune.Program):
    before = snapshot(program)
    with pytest.raises(InvariantError, match="break"):
        fxprune.prune(program, recipe({"name": "break"}), inplace=True)
    assert snapshot(program) == before


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("finalize", [{}, {"finalize": {}}])
def test_a_broken_promise_is_told_and_nothing_is_written(
    fault: str, finalize: dict[str, Any], tmp_path: Path
):
    torch.manual_seed(0)
    net = Net()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    rules = recipe({"name": "breaks", "args": {"fault": fault}}, **finalize)
    kind = PassError if fault == "raising" else InvariantError
    with pytest.raises(kind, match=f"(?s){FAULTS[fault][1]}"):
        fxprune.compile(net, rules, (torch.randn(3, 4),), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_a_pass_may_promise_outputs_that_are_close(program: fxprune.Program):
    small = {"name": "close", "args": {"by": 1e-12}}
    result = fxprune.compile(program, recipe(small))
    assert "close" in [step.promise for step in result.certificate.passes]
    with pytest.raises(InvariantError, match="'close' promised outputs that are close in float64"):
        fxprune.compile(program, recipe({"name": "close", "args": {"by": 1e-3}}))


@pytest.mark.parametrize("word", ["promise", "effect"])
def test_a_pass_that_promises_what_is_unknown_is_refused_before_anything_runs(
    word: str, program: fxprune.Program, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Close, word, "all")
    steps: list[str] = []
    with pytest.raises(PassError, match=r"the pass 'close' \w+ 'all'; there are '"):
        fxprune.compile(program, recipe({"name": "close"}), on_pass=steps.append)
    assert steps == ["capture"]


def test_facts_that_no_pass_gives_are_missed_before_anything_runs(program: fxprune.Program):
    steps: list[str] = []
    with pytest.raises(PassError, match="'use' needs Seen, which no pass before it gives"):
        fxprune.prune(program, recipe({"name": "use"}), on_pass=steps.append)
    assert steps == []


CALLS: list[tuple[Any, str]] = [
    ({"name": "usee"}, "there is no pass 'usee'; did you mean 'use'?"),
    ({"name": "unmade", "args": {"number": 1}}, "the pass 'unmade': number is odd"),
    (
        {"name": "unmade", "args": {"nmber": 2}},
        "the pass 'unmade' does not take; did you mean 'num",
    ),
    ({"name": "look", "args": {"zzz": 2}}, "which the pass 'look' does not take; it takes none"),
    ({"name": "gone"}, "the pass 'gone' cannot be imported from tests.tools.foreign:Gone"),
    ({"name": "method"}, "the pass 'method' is a step of rules; write a [[rule]]"),
    ({"name": "given"}, "the pass 'given' is a step of rules; write a [[rule]]"),
    ({"name": "select"}, "the pass 'select' is a step of rules; write a [[rule]]"),
    ({"name": "look", "args": {"a": {1}}}, "args holds more than data"),
    ("look", "'look' is not a table; write each pass under its own [[pass]]"),
    ({}, "name is missing"),
]


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_faults_of_a_call_say_where(call: Any, message: str):
    with pytest.raises(RecipeError) as error:
        Recipe.from_dict(recipe({"name": "look"}, call))
    assert str(error.value).startswith("recipe: [[pass]] 2: ")
    assert message in str(error.value)


def test_calls_in_python_and_back_to_data():
    made = Recipe.from_dict(recipe({"name": "unmade", "args": {"number": 2}}, {"name": "look"}))
    assert made.passes == (PassCall(name="unmade", args={"number": 2}), PassCall(name="look"))
    assert Recipe.from_dict(made.to_dict()) == made
    with pytest.raises(RecipeError, match="PassCall: there is no pass 'lok'; did you mean 'look'"):
        PassCall(name="lok")


def test_a_score_of_channels_takes_its_dim_and_its_options(program: fxprune.Program):
    rule = {**SCORE, "score": "peak", "granularity": "channel", "dim": 0, "args": {"power": 2.0}}
    masked = fxprune.prune(program, {"rule": [rule]})
    weight = program.get_parameter("0.weight")
    order = weight.detach().abs().amax(dim=1).argsort()
    gone = (masked.masks["0.weight"] == 0).all(dim=1).nonzero().flatten()
    assert set(gone.tolist()) == set(order[:3].tolist())
    again = fxprune.prune(masked, {"rule": [{**rule, "amount": 1}]})
    assert int((again.masks["0.weight"] == 0).all(dim=1).sum()) == 4
    assert fxprune.report(masked).rules[0].method == "peak/channel"


def test_a_score_may_share_a_budget(program: fxprune.Program):
    keys = {"scope": "global", "group": "g", "score": "constant", "args": {"fault": "fine"}}
    rules = [{**SCORE, **keys, "select": f"{layer}.weight"} for layer in (0, 3)]
    masked = fxprune.prune(program, {"rule": rules})
    # Equal scores: lower parameter order first.
    assert [int((mask == 0).sum()) for mask in masked.masks.values()] == [24, 0]
    other = [rules[0], {**rules[1], "args": {}}]
    with pytest.raises(RecipeError, match="args differs from that of"):
        Recipe.from_dict({"rule": other})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("names", r"scores \['3.weight'\], but the rule selects \['0.weight', '3.weight'\]"),
        ("units", "counts 3 of 24 entries in '0.weight'"),
        ("dim", "says Scores.dim is 0, but the rule asks for None"),
        ("complex", "gives torch.complex64 for '0.weight'"),
    ],
)
def test_scores_that_do_not_fit_are_refused(program: fxprune.Program, fault: str, message: str):
    rule = {**SCORE, "score": "constant", "args": {"fault": fault}}
    with pytest.raises(PassError, match=f"the score 'constant' {message}"):
        fxprune.prune(program, {"rule": [rule]})


SCORES: list[tuple[dict[str, Any], str]] = [
    ({"score": "peek"}, "score = 'peek' is not known; did you mean 'peak'?"),
    ({"score": "look"}, "score = 'look' is a pass, but no score (it gives Seen); give one of"),
    ({"score": "gone"}, "score = 'gone' cannot be used: the pass 'gone' cannot be imported"),
    ({"score": "peak"}, "score = 'peak' ranks channels; give granularity = 'channel'"),
    (
        {"score": "constant", "granularity": "channel"},
        "score = 'constant' ranks elements; give granularity = 'element'",
    ),
    (
        {"score": "peak", "granularity": "channel", "args": {"powr": 1.0}},
        "args has 'powr', which the pass 'peak' does not take; did you mean 'power'?",
    ),
    (
        {"score": "peak", "granularity": "channel", "args": {"dim": 1}},
        "args has 'dim', which the pass 'peak' does not take; it takes 'power'",
    ),
    ({"score": "constant", "seed": 1}, "seed does not go with score = 'constant'"),
    ({"score": "constant", "n": 1}, "n does not go with score = 'constant'"),
    (
        {"score": "peak", "granularity": "channel", "scope": "global"},
        "scope = 'global' does not go",
    ),
]


@pytest.mark.parametrize(("keys", "message"), SCORES)
def test_faults_of_a_score_say_where(keys: dict[str, Any], message: str):
    with pytest.raises(RecipeError) as error:
        Recipe.from_dict({"rule": [{**SCORE, **keys}]})
    assert str(error.value).startswith("recipe: [[rule]] 1: ")
    assert message in str(error.value)


def test_passes_are_described():
    peak = describe("peak")
    assert (peak.kind, peak.distribution, peak.promise) == ("score", "foreign", None)
    assert peak.options == {"dim": NO_DEFAULT, "power": 1.0}
    assert (peak.needs, peak.gives) == (("Selection",), ("Scores",))
    assert describe("use").promise == "same"
    found, broken = list_passes()
    assert {"finalize", "peak", "use"} <= {each.name for each in found}
    assert len(broken) == 1
    assert "'gone' cannot be imported" in broken[0]
