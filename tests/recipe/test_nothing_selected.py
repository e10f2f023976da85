"""Rules that select nothing: the message names the nearest parameter and what failed there."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import SelectError
from fxprune.program.program import Program


class Net(nn.Module):
    """Two blocks, of which the second one's norm is read twice, and two heads that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(4, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        x = (torch.relu(y) + y).mean((2, 3))
        return self.fc2(torch.tanh(self.fc1(x)))


@cache
def net() -> Program:
    return fxprune.capture(Net(), (torch.randn(2, 2, 6, 6),))


SELECT, MATCH = "select", "match"
# What the rule says, which parameter is nearest, why it is not taken, and which node that is about.
RULES: list[tuple[str, Any, str, str, str]] = [
    (SELECT, {"op": "conv3d"}, "conv1.weight",
     "it is weight of conv2d, not any argument of conv3d", "conv2d"),
    (SELECT, {"op": "linear", "role": "wieght"}, "fc1.weight",
     "it is weight of linear, not wieght of linear", "linear"),
    (SELECT, {"op": "conv2d", "role": "bias", "path": "conv1.*"}, "conv2.bias",
     "its name does not match path 'conv1.*'", "conv2d_1"),
    (SELECT, {"module": "Conv1d", "param": "weight"}, "conv1.weight",
     "its module is a Conv2d, not a Conv1d", "conv2d"),
    (SELECT, {"path": "fc3.weight"}, "fc1.weight",
     "its name does not match path 'fc3.weight'", "linear"),
    (SELECT, {"op": "linear", "path": "conv*", "param": "bias"}, "fc1.bias",
     "its name does not match path 'conv*'", "linear"),
    (SELECT, {"regex": "^bn2$", "module": "BatchNorm2d"}, "bn2.bias",
     "its name does not match regex '^bn2$'", "batch_norm_1"),
    (SELECT, {"param": "wieght", "module": "Linear"}, "fc1.weight",
     "its attribute is weight, not wieght", "linear"),
    (SELECT, {"module": "Linear", "param": "bias", "exclude": "fc*"}, "fc1.bias",
     "exclude 'fc*' leaves it out", "linear"),
    (SELECT, {"op": "conv2d", "min_numel": 1000}, "conv1.weight",
     "it has 72 entries, fewer than min_numel = 1000", "conv2d"),
    (SELECT, {"path": "fc2.*", "ndim": [3, 4]}, "fc2.weight",
     "it has 2 dimensions, not 3 or 4", "linear_1"),
    (SELECT, {"path": "fc2.bias", "dtype": "float64"}, "fc2.bias",
     "its dtype is float32, not float64", "linear_1"),
    (MATCH, "gelu(batch_norm(conv2d(_, W)))", "conv1.weight",
     "the operator is relu, not gelu", "relu"),
    (MATCH, "relu(batch_norm(conv2d(_, W, B)))", "conv2.weight",
     "batch_norm's value has 2 users, not only relu", "add"),
    (MATCH, "relu(batch_norm(conv2d(_, W, groups=4)))", "conv1.weight",
     "1 is not 4", "conv2d"),
    (MATCH, "relu(batch_norm(conv2d(_, W, padding=1)))", "conv2.weight",
     "batch_norm's value has 2 users, not only relu", "add"),
    (MATCH, "relu(linear(_, W))", "fc1.weight",
     "the operator is tanh, not relu", "tanh"),
    (MATCH, "linear(relu(_), W)", "fc1.weight",
     "the operator is mean, not relu", "mean"),
    (MATCH, "linear(tanh(linear(_, V)), W, None)", "fc2.weight",
     "fc2_bias is not None", "linear_1"),
    (MATCH, "linear(_, _, _, W)", "fc1.weight",
     "linear has no argument 4", "linear"),
    (MATCH, "relu(conv1d(_, W))", "conv1.weight",
     "it feeds conv2d, which is not in the pattern", "conv2d"),
    (MATCH, "conv2d(relu(batch_norm(conv2d(_, _), W)), _, None)", "bn1.weight",
     "conv2_bias is not None", "conv2d_1"),
    (MATCH, "softmax(linear(tanh(linear(_, _)), W))", "fc2.weight",
     "output is not a call of softmax", "output"),
]  # fmt: skip


def fault(key: str, value: Any, **more: Any) -> list[str]:
    rule = {"name": "nets", key: value, "method": "identity", **more}
    if key == MATCH:
        rule["prune"] = "W"
    with pytest.raises(SelectError) as caught:
        fxprune.prune(net(), {"rule": [rule]})
    return str(caught.value).split("\n")


@pytest.mark.parametrize(("key", "value", "parameter", "reason", "node"), RULES)
def test_the_nearest_parameter_is_named_with_what_failed(
    key: str, value: Any, parameter: str, reason: str, node: str
):
    head, nearest, *others = fault(key, value)
    assert head.startswith("rule 'nets' selects nothing")
    assert head.endswith(f"; change its {key}, or say optional = true")
    start = f"  nearest is {parameter}: {reason} (node {node}"
    assert nearest.startswith(start)
    # Every node but the output comes from a line of the model above.
    assert (Path(__file__).name in nearest) == (node != "output"), nearest
    assert len(others) == 5
    assert others[-1] == "  ... and 6 more"
    assert not any(line.startswith(f"  {parameter}:") for line in others)


UNKNOWN: list[tuple[str, Any, str]] = [
    (SELECT, {"op": "conv3d"}, "op 'conv3d' does not occur in the program; did you mean 'conv2d'?"),
    (MATCH, "relu(conv3d(_, W))",
     "op 'conv3d' does not occur in the program; did you mean 'conv2d'?"),
    (MATCH, "rleu(conv2d(_, W))",
     "op 'rleu' does not occur in the program; did you mean 'relu'?"),
    (MATCH, "(qqqq|tahn)(conv2d(_, W))", "op 'qqqq' does not occur in the program"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "hint"), UNKNOWN)
def test_what_does_not_occur_is_told_with_the_nearest_that_does(key: str, value: Any, hint: str):
    assert fault(key, value)[0].startswith(f"rule 'nets' selects nothing ({hint});")


@pytest.mark.parametrize("pattern", ["(qqqq|relu)(linear(_, W))", "_(_(linear(_, W, stride=1)))"])
def test_an_alternative_that_does_not_occur_is_no_fault(pattern: str):
    assert fault(MATCH, pattern)[0].startswith("rule 'nets' selects nothing; change its match")


def test_a_rule_that_may_select_nothing_selects_nothing():
    rule = {"match": "conv3d(_, W)", "method": "identity", "optional": True}
    assert dict(fxprune.prune(net(), {"rule": [rule]}).masks) == {}
