"""A network that has what a cut of channels has to mind, and recipes that cut it."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from tests.mutants.programs import Drawn


class Channels(nn.Module):
    """Has each operator whose arguments count or place channels, and constants to absorb."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.skip = nn.Conv2d(8, 8, 1)
        self.gate = nn.Conv2d(2, 8, 3)
        self.other = nn.Conv2d(2, 6, 3)
        self.after = nn.Conv2d(14, 9, 1)
        self.mixed = nn.Linear(9 * 4, 8)
        self.halves = nn.Linear(8, 8)
        self.last = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = self.skip(y) + torch.sigmoid(self.depth(y))
        y = y * torch.sigmoid(self.gate(x))
        y = self.after(torch.cat([y, self.other(x)], dim=1))
        y = torch.sigmoid(self.mixed(torch.tanh(y).reshape(-1, 36)))
        left, right = torch.chunk(torch.tanh(self.halves(y)), 2, dim=1)
        return self.last(torch.cat([right, left, left[:, 1:3], y[:, 2:5], y[:, 5:6]], dim=1))


NAMES = ("first", "depth", "skip", "other", "after", "mixed", "halves")


class Cutting(Drawn):
    """A network whose channels are pruned, finalized and cut; its gate is a constant."""

    def model(self) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.number)
            net = Channels().eval()
            with torch.no_grad():
                net.gate.weight.zero_()
                for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
                    norm.weight.normal_()
                    norm.bias.normal_()
                    norm.running_mean = torch.randn(8)
            return net, (torch.randn(3, 2, 4, 4),), {}

    def recipe(self) -> dict[str, Any]:
        rule: dict[str, Any] = {"method": "ln_structured", "n": 2, "dim": 0, "amount": 0.4}
        rule["select"] = [f"{name}.weight" for name in NAMES]
        return {"rule": [rule], "finalize": {}, "shrink": {}}


class Coupled(Cutting):
    """The same network, pruned by coupled channels within limits, in two rules."""

    def recipe(self) -> dict[str, Any]:
        rng = random.Random(self.number)
        method = rng.choice(["ln_structured", "ln_structured", "random_structured"])
        # Over all layers, limits that leave less than the amount are an error.
        scope, amount = rng.choice([("local", 0.3), ("local", 0.5), ("global", 0.2)])
        rule: dict[str, Any] = {
            "select": [f"{name}.weight" for name in NAMES],
            "method": method,
            "amount": amount,
            "scope": scope,
            "coupled": True,
            "min_keep": rng.choice([1, 2, 6] if scope == "local" else [1, 2]),
            "max_share": rng.choice([0.5, 0.25, 1.0] if scope == "local" else [0.5, 1.0]),
            "round_to": rng.choice([1, 2]),
        }
        rule |= {"n": rng.choice([1, 2])} if method == "ln_structured" else {"seed": self.number}
        return {"rule": [rule, {**rule, "min_keep": 1, "max_share": 0.75}], "finalize": {}}
