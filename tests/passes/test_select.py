"""select: which parameters a rule takes, and why not the others."""

from __future__ import annotations

from typing import Any

import pytest

from fxprune import functional as prune
from fxprune.errors import MissingParameterError, SelectError
from fxprune.recipe.select import Select
from fxprune.recipe.selecting import Bound
from fxprune.rewrite.facts import Selection
from fxprune.rewrite.registry import create
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.assert_pass import snapshot
from tests.conftest import Golden
from tests.tools.helpers import both_texts, facts_text, program, run, source_of


def selected(name: str, *selects: dict[str, Any], **options: Any) -> Selection:
    made = tuple(Select(**select) for select in selects)
    step = create("select", rule="rule-1", selects=made, **options)
    return run(program(name), step)[0][Selection]


def names(found: Selection) -> list[str]:
    return [site.name for site in found.sites]


GOLDEN: list[tuple[str, str, dict[str, Any]]] = [
    ("weights", "conv", {"op": ["conv2d", "linear"], "role": "weight"}),
    ("tied", "tied", {"path": "*.weight"}),
    ("modes", "modes", {"op": "linear", "exclude": "head.*"}),
]


@pytest.mark.parametrize(("case", "name", "select"), GOLDEN)
def test_selection(case: str, name: str, select: dict[str, Any], golden: Golden):
    found = selected(name, select)
    golden("select", case, both_texts(text(source_of(name)), facts_text(found)))


TAKES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("conv", {}, ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]),
    ("conv", {"op": "batch_norm"}, ["1.weight", "1.bias"]),
    ("conv", {"role": "bias"}, ["0.bias", "1.bias", "4.bias"]),
    ("conv", {"op": "conv2d", "role": "bias"}, ["0.bias"]),
    ("conv", {"module": ["Conv2d", "Linear"], "param": "weight"}, ["0.weight", "4.weight"]),
    ("conv", {"path": ["4.*", "0.b*"]}, ["0.bias", "4.weight", "4.bias"]),
    ("conv", {"regex": r"^[01]\.b"}, ["0.bias", "1.bias"]),
    ("conv", {"min_numel": 48}, ["0.weight", "4.weight"]),
    ("conv", {"ndim": [2, 4]}, ["0.weight", "4.weight"]),
    ("conv", {"dtype": "float32", "exclude": ["*.bias", "1.*"]}, ["0.weight", "4.weight"]),
    ("tied", {"path": "out.*"}, ["emb.weight"]),
    ("tied", {"op": "embedding"}, ["emb.weight"]),
    ("tied", {"op": "linear", "module": "Linear"}, ["emb.weight"]),
    ("modes", {"path": "aux.*"}, ["aux.weight", "aux.bias"]),
]


@pytest.mark.parametrize(("name", "select", "taken"), TAKES)
def test_all_conditions_must_hold(name: str, select: dict[str, Any], taken: list[str]):
    found = selected(name, select)
    assert names(found) == taken
    assert [site for site, _ in found.refused] == [
        site for site in source_of(name).aliases if site not in taken
    ]


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("conv", "1.bias", {"op": ["conv2d", "linear"], "role": "bias"},
     "it is bias of batch_norm, not bias of conv2d or linear"),
    ("conv", "1.bias", {"op": "relu"}, "it is bias of batch_norm, not any argument of relu"),
    ("conv", "0.weight", {"role": "bias"}, "it is weight of conv2d, not bias of any operator"),
    ("tied", "emb.weight", {"op": "conv2d"},
     "it is weight of embedding, weight of linear, not any argument of conv2d"),
    ("conv", "0.bias", {"module": "Linear"}, "its module is a Conv2d, not a Linear"),
    ("tied", "emb.weight", {"module": ["Conv2d", "LSTM"]},
     "its module is a Embedding or Linear, not a Conv2d or LSTM"),
    ("conv", "0.bias", {"path": ["4.*", "9"]}, "its name does not match path '4.*' or '9'"),
    ("conv", "0.bias", {"regex": "^4"}, "its name does not match regex '^4'"),
    ("conv", "0.bias", {"param": "weight"}, "its attribute is bias, not weight"),
    ("tied", "emb.weight", {"exclude": "out.*"}, "exclude 'out.*' leaves it out"),
    ("conv", "0.bias", {"min_numel": 5}, "it has 4 entries, fewer than min_numel = 5"),
    ("conv", "0.bias", {"ndim": [2, 4]}, "it has 1 dimensions, not 2 or 4"),
    ("conv", "0.bias", {"dtype": ["float64", "bfloat16"]},
     "its dtype is float32, not float64 or bfloat16"),
    ("conv", "0.bias", {"path": "9", "ndim": 2}, "its name does not match path '9'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameter", "select", "reason"), REFUSED)
def test_the_first_condition_that_fails_is_the_reason(
    name: str, parameter: str, select: dict[str, Any], reason: str
):
    found = selected(name, select, optional=True)
    assert dict(found.refused)[parameter].reason == reason


def test_a_parameter_is_refused_only_by_all_rules_of_a_group():
    found = selected("conv", {"path": "0.*"}, {"param": "bias"})
    assert names(found) == ["0.weight", "0.bias", "1.bias", "4.bias"]
    assert dict(found.refused)["4.weight"].reason == "its name does not match path '0.*'"


NOTHING: list[tuple[dict[str, Any], str]] = [
    ({"op": "conv3d"}, "op 'conv3d' does not occur in the program; did you mean 'conv2d'?"),
    ({"role": "wieght"}, "role 'wieght' does not occur in the program; did you mean 'weight'?"),
    ({"module": "Conv1d"}, "module 'Conv1d' does not occur in the program; did you mean 'Conv2d'?"),
    ({"path": "4.wght"}, "path '4.wght' does not occur in the program; did you mean '4.weight'?"),
    ({"param": "qqq"}, "param 'qqq' does not occur in the program"),
    ({"path": "0.*", "min_numel": 1000}, ""),
]


@pytest.mark.parametrize(("select", "hint"), NOTHING)
def test_selecting_nothing_is_an_error_that_says_why(select: dict[str, Any], hint: str):
    with pytest.raises(SelectError) as caught:
        selected("conv", select)
    lines = str(caught.value).splitlines()
    what = f" ({hint})" if hint else ""
    assert lines[0] == (
        f"rule 'rule-1' selects nothing{what}; change its select, or say optional = true"
    )
    assert len(lines) == 7
    assert lines[1].startswith("  nearest is ")
    assert all(line.startswith("  ") and ": it" in line for line in lines[1:6])
    assert lines[-1] == "  ... and 1 more"


def test_selecting_nothing_is_fine_where_the_rule_is_optional():
    found = selected("conv", {"op": "conv3d"}, optional=True)
    assert found.sites == ()
    assert len(found.refused) == 6


# By a pattern


def matched(name: str, match: str, *prune: str, **options: Any) -> Selection:
    step = create("select", rule="rule-1", selects=(Bound(match, prune or ("W",)),), **options)
    return run(program(name), step)[0][Selection]


def test_a_pattern_selects(golden: Golden):
    found = matched("conv", "relu(batch_norm(conv2d(_, W), G))", "W", "G")
    golden("select", "match", both_texts(text(source_of("conv")), facts_text(found)))


def test_a_pattern_and_a_select_may_share_a_budget():
    step = create(
        "select", rule="a+b", selects=(Bound("conv2d(_, W)", ("W",)), Select(path="4.weight"))
    )
    found = run(program("conv"), step)[0][Selection]
    assert names(found) == ["0.weight", "4.weight"]
    other = create("select", rule="a+b", selects=(Bound("tanh(W)", ("W",)), Select(path="9")))
    with pytest.raises(SelectError, match="; change its match or select, or say optional = true"):
        run(program("conv"), other)


# By name, as fxprune.functional asks


def test_names_are_taken_in_their_order_and_aliases_once():
    assert names(selected("mlp", names=("2.bias", "0.weight"))) == ["2.bias", "0.weight"]
    assert names(selected("tied", names=("out.weight", "emb.weight"))) == ["emb.weight"]


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(MissingParameterError) as caught:
        selected("mlp", names=("0.weight", "2.weigth"))
    assert str(caught.value) == "the program has no parameter '2.weigth'; did you mean '2.weight'?"
    with pytest.raises(MissingParameterError, match=r"there are '0.weight', '0.bias', '2.weight'"):
        selected("mlp", names=("zzz",))


# What a site tells


def test_a_masked_parameter_is_used_where_its_product_is():
    p = program("conv")
    step = create("select", rule="r", selects=(Select(op="conv2d"),))
    before = run(p, step)[0][Selection]
    prune.l1_unstructured(p, "0.weight", 0.5)
    after = run(p, step)[0][Selection]
    assert after.sites == before.sites
    assert [(name, str(why)) for name, why in after.refused] == [
        (name, str(why)) for name, why in before.refused
    ]


def test_uses_are_those_of_all_graphs():
    site = selected("modes", {"path": "aux.weight"}).sites[0]
    assert site.uses == (("linear", "weight"),)
    assert (site.shape, site.numel, site.modules) == ((2, 4), 8, ("Linear",))


def test_selecting_changes_nothing():
    p = program("modes")
    before = snapshot(p)
    run(p, create("select", rule="r", selects=(Select(),)))
    assert snapshot(p) == before
