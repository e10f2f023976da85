"""What is refused in a rule, and in which words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fxprune.recipe.rule import METHODS
from fxprune.recipe.select import DTYPES
from tests.recipe.test_recipe import NAMES, SHARE_OR_COUNT, fault, rule

NORM = "give a number, 'fro', 'nuc', 'inf' or '-inf'"
KNOWN_METHODS = ", ".join(f"'{name}'" for name in METHODS) + ', "package.module:Class"'
RULE_FAULTS: list[tuple[dict[str, Any], str]] = [
    (rule(amount=None, amout=0.2), "unknown key 'amout'; did you mean 'amount'?"),
    (rule(method=None, metod="l1_unstructured"), "unknown key 'metod'; did you mean 'method'?"),
    (rule(select=None, selct="*"), "unknown key 'selct'; did you mean 'select'?"),
    (
        rule(qqq=1),
        "unknown key 'qqq'; known: name, select, match, prune, method, score, granularity, "
        "coupled, amount, n, dim, mask, scope, group, min_keep, max_share, round_to, normalize, "
        "optional, ties, seed, args",
    ),
    (
        rule(select=None),
        'select is missing; write select = { path = "conv1.weight" }, or '
        'match = "relu(conv2d(_, W))"',
    ),
    (
        rule(match="conv2d(_, W)"),
        "select and match each say which parameters the rule takes; leave one out",
    ),
    (rule(prune="W"), "prune does not go with select; leave it out: it is for match"),
    (rule(select=None, prune="W"), 'match is missing; write match = "relu(conv2d(_, W))"'),
    (rule(select=None, mtch="relu(W)"), "unknown key 'mtch'; did you mean 'match'?"),
    (rule(select=None, match=3), 'match = 3 is not a text; write match = "relu(conv2d(_, W))"'),
    (
        rule(select=None, match="relu(a.b)"),
        "match: expected a name, a constant or operator(...)\n  relu(a.b)\n       ^",
    ),
    (
        rule(select=None, match="relu(\n  a.b)"),
        "match: expected a name, a constant or operator(...) (line 2)\n    a.b)\n    ^",
    ),
    (
        rule(select=None, match="relu(x)"),
        "match binds no parameter; give the one to prune a capital name, as conv2d(_, W)",
    ),
    (
        rule(select=None, match="linear(_, W, B)"),
        "prune is missing; match binds 'W', 'B': name those to prune, as prune = 'W'",
    ),
    (
        rule(select=None, match="linear(_, Weight, Bias)", prune="wight"),
        "prune = 'wight' is not bound in match; did you mean 'Weight'? Bound: 'Weight', 'Bias'",
    ),
    (
        rule(select=None, match="linear(_, W)", prune=["W", "V"]),
        "prune = 'V' is not bound in match; did you mean 'W'? Bound: 'W'",
    ),
    (
        rule(select=None, match="W", prune=[]),
        'prune = [] is empty; give a capital name of match, or a list of them, as prune = "W"',
    ),
    (rule(select=3), 'select = 3 is not a table; write select = { path = "conv1.weight" }'),
    (rule(select=[]), f"select: path = [] is empty; {NAMES}"),
    (rule(select={"opp": "conv2d"}), "select: unknown key 'opp'; did you mean 'op'?"),
    (rule(select={"op": ["conv2d", 3]}), f"select: op = 3 is not a text; {NAMES}"),
    (rule(select={"param": ""}), f"select: param = '' is empty; {NAMES}"),
    (rule(select={"path": "\ud800"}), f"select: path = '\\ud800' is not a text; {NAMES}"),
    (
        rule(select={"regex": ["a", "conv[1"]}),
        "select: regex = 'conv[1' is not a regular expression: unterminated character set, "
        "at character 5 '['",
    ),
    (
        rule(select={"regex": "(?i"}),
        "select: regex = '(?i' is not a regular expression: missing -, : or ), at its end",
    ),
    (
        rule(select={"regex": "a{99999999999}"}),
        "select: regex = 'a{99999999999}' is not a regular expression that Python can compile; "
        "make it simpler",
    ),
    (
        rule(select={"dtype": "flot32"}),
        "select: dtype = 'flot32' is not known; did you mean 'float32'? Known: "
        + ", ".join(f"'{name}'" for name in DTYPES),
    ),
    (
        rule(select={"ndim": [2, "4"]}),
        "select: ndim = '4' is not a whole number; give a whole number of 0 or more, "
        "or a list of them",
    ),
    (
        rule(select={"min_numel": -1}),
        "select: min_numel = -1 is out of range; give a whole number of 0 or more",
    ),
    (rule(method=None), 'method is missing; give a name, as method = "l1_unstructured"'),
    (rule(method=3), 'method = 3 is not a text; give a name, as method = "l1_unstructured"'),
    (
        rule(method="l1_unstructred"),
        "method = 'l1_unstructred' is not known; did you mean 'l1_unstructured'? "
        f"Known: {KNOWN_METHODS}",
    ),
    (rule(method="a b:C"), f"method = 'a b:C' is not known; known: {KNOWN_METHODS}"),
    (
        rule(score="norm"),
        "method = 'l1_unstructured' says how to rank; leave score and granularity out",
    ),
    (
        rule(method=None, score="norms", granularity="channel"),
        "score = 'norms' is not known; did you mean 'norm'? Known: 'magnitude', 'norm', 'random'",
    ),
    (
        rule(method=None, score="random"),
        "granularity is missing; give granularity = 'element' or 'channel'",
    ),
    (
        rule(method=None, granularity="element"),
        "score is missing; give score = 'magnitude', 'norm' or 'random'",
    ),
    (
        rule(method=None, score="magnitude", granularity="channel"),
        "score = 'magnitude' ranks elements; for channels give score = 'norm' and n = 1",
    ),
    (
        rule(method=None, score="norm", granularity="element"),
        "score = 'norm' ranks channels; for elements give score = 'magnitude'",
    ),
    (rule(amount=None), f"amount is missing; {SHARE_OR_COUNT}"),
    (rule(amount=1.5), f"amount = 1.5 is out of range; {SHARE_OR_COUNT}"),
    (rule(amount=-1), f"amount = -1 is out of range; {SHARE_OR_COUNT}"),
    (rule(amount=math.nan), f"amount = nan is out of range; {SHARE_OR_COUNT}"),
    (rule(amount=math.inf), f"amount = inf is out of range; {SHARE_OR_COUNT}"),
    (rule(amount=2**70), f"amount = a number of 71 bits is out of range; {SHARE_OR_COUNT}"),
    (rule(amount="0.5"), f"amount = '0.5' is not a number; {SHARE_OR_COUNT}"),
    (rule(amount=torch.ones(1)), f"amount = <Tensor> is not a number; {SHARE_OR_COUNT}"),
    (rule(amount=True), f"amount = true is not a number; {SHARE_OR_COUNT}"),
    (
        rule(method="identity"),
        "amount does not go with method = 'identity'; leave it out: it is for methods that rank "
        "or draw",
    ),
    (rule(method="ln_structured"), f"n is missing; {NORM}"),
    (rule(method="ln_structured", n="two"), f"n = 'two' is not a number; {NORM}"),
    (rule(method="ln_structured", n=math.nan), f"n = nan is out of range; {NORM}"),
    (
        rule(n=2),
        "n does not go with method = 'l1_unstructured'; leave it out: it is for the norm score, "
        "as in ln_structured",
    ),
    (
        rule(method="random_structured", dim="0"),
        "dim = '0' is not a whole number; give a whole number, as dim = 0",
    ),
    (
        rule(method=None, score="magnitude", granularity="element", dim=0),
        "dim does not go with score = 'magnitude'; leave it out: it is for structured methods",
    ),
    (
        rule(method="custom_from_mask", amount=None),
        "mask is missing; give the path of a .safetensors, .pt, .pth or .bin file",
    ),
    (
        rule(method="custom_from_mask", amount=None, mask="a.npz"),
        "mask = 'a.npz' does not fit; give the path of a .safetensors, .pt, .pth or .bin file",
    ),
    (
        rule(mask="a.safetensors"),
        "mask does not go with method = 'l1_unstructured'; leave it out: it is for "
        "custom_from_mask",
    ),
    (
        rule(scope="globl"),
        "scope = 'globl' is not known; did you mean 'global'? Known: 'local', 'global'",
    ),
    (
        rule(method="random_structured", scope="global"),
        "scope = 'global' does not go with method = 'random_structured'; leave it out: channels "
        "differ in size from one parameter to the next, so one ranking is not fair "
        "(coupled = true ranks them by the size of all that goes with them)",
    ),
    (
        rule(method="identity", amount=None, scope="global"),
        "scope = 'global' does not go with method = 'identity'; leave it out: this method ranks "
        "nothing",
    ),
    (rule(group="g"), "group = 'g' needs scope = 'global'; add it or leave group out"),
    (rule(optional=1), "optional = 1 is neither true nor false; write true or false"),
    (
        rule(ties="torh"),
        "ties = 'torh' is not known; did you mean 'torch'? Known: 'index', 'torch'",
    ),
    (
        rule(seed=3),
        "seed does not go with method = 'l1_unstructured'; leave it out: it is for random methods",
    ),
    (
        rule(method="random_unstructured", seed=-1),
        "seed = -1 is out of range; give a whole number from 0 to 2**64 - 1",
    ),
    (rule(args=3), "args = 3 is not a table; give a table of keyword arguments"),
    (
        rule(args={"a": 1}),
        "args does not go with method = 'l1_unstructured'; leave it out: it is for methods of the "
        'form "package.module:Class" and scores of other distributions',
    ),
    (rule(name=""), "name = '' does not fit; give a text on one line, of 200 characters at most"),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("table", "text"), RULE_FAULTS)
def test_faults_of_a_rule(table: dict[str, Any], text: str):
    named = {**table, "name": table.get("name", "hidden")}
    label = f' "{named["name"]}"' if named["name"] else ""
    good = rule(name="first")
    assert fault({"rule": [good, named]}) == f"recipe.toml: [[rule]] 2{label}: {text}"


def test_a_name_is_short():
    text = fault({"rule": [rule(name="a" * 201)]})
    assert text.endswith("... is too long; give a text on one line, of 200 characters at most")
    assert len(text) < 300
