"""`fxprune demo`: a small CNN on scikit-learn's digits, pruned, finalized and checked.

The data are handwritten digits of 8 x 8 pixels (E. Alpaydin and C. Kaynak, 1998, "Optical
Recognition of Handwritten Digits", UCI Machine Learning Repository), which scikit-learn brings.
"""

from __future__ import annotations

import copy
import importlib
import json
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

from fxprune.cli.output import Page
from fxprune.compiler import Result, capture, compile, finalize, prune
from fxprune.errors import FormatError
from fxprune.program import Program, parameters
from fxprune.recipe import Recipe
from fxprune.support import same_bits
from fxprune.verification import verify

RECIPE = """\
[[rule]]
name   = "filters"
select = { path = "conv2.weight" }
method = "ln_structured"
n      = 2
dim    = 0
amount = 0.25

[[rule]]
name   = "weights"
select = { op = ["conv2d", "linear"], param = "weight" }
method = "l1_unstructured"
scope  = "global"
amount = 0.8

[finalize]

[export]
formats = ["pt2", "safetensors"]"""
_WEIGHTS = ("conv1", "conv2", "fc1", "fc2")  # what the rule "weights" selects
_TRAINED_ON = 1_297  # of 1,797 digits
_EPOCHS, _EPOCHS_MASKED = 8, 2

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Digits:
    """Images, float32 (n, 1, 8, 8) in 0..1, and their digits, int64 (n,), to train and test on."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


class DigitsNet(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the ten digits, (n, 10)."""
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


@dataclass(frozen=True)
class Check:
    """How many masks and entries were compared with torch's, and whether all bits are equal."""

    parameters: int
    entries: int
    masks: bool
    outputs: bool


@dataclass(frozen=True)
class Outcome:
    """What the demo measured; true where all bits are torch's and finalizing kept outputs."""

    result: Result
    check: Check
    accuracy: dict[str, float]
    kept: bool

    def __bool__(self) -> bool:
        return self.check.masks and self.check.outputs and self.kept

    def to_json(self) -> str:
        """Return all of it as JSON."""
        data = {
            "ok": bool(self),
            "check": asdict(self.check),
            "accuracy": self.accuracy,
            "report": json.loads(self.result.report.to_json()),
            "certificate": json.loads(self.result.certificate.to_json()),
            "files": [str(path) for path in self.result.files],
        }
        return json.dumps(data, indent=2, allow_nan=False)


def read_digits() -> Digits:
    """Read the digits that scikit-learn brings, shuffled."""
    try:
        datasets: Any = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise FormatError(
            "the demo trains on scikit-learn's digits, and scikit-learn is not installed; run "
            'pip install "fxprune[demo]"'
        ) from error
    images, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
    y = torch.tensor(labels, dtype=torch.int64)[order]
    at = _TRAINED_ON
    return Digits(x[:at], y[:at], x[at:], y[at:])


def run_demo(page: Page, tell: Tell, out: Path | None = None) -> Outcome:
    """Train, compile, check, fine-tune and finalize, and print what came of it."""
    digits = read_digits()
    recipe = Recipe.from_dict(tomllib.loads(RECIPE))
    example = digits.test_x[:1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitsNet()
        train(model, digits, _EPOCHS, tell)
        accuracy = {"dense": accuracy_of(model, digits)}
        page.text(
            f"A CNN of {sum(p.numel() for p in model.parameters()):,} parameters, trained for "
            f"{_EPOCHS} epochs on {len(digits.x):,} handwritten digits."
        )
        page.heading("The recipe")
        page.text(RECIPE)
        page.heading("What it did")
        result = compile(model, recipe, (example,), out=out, on_pass=tell)
        page.report(result.report)
        masked = prune(capture(model, (example,)), recipe, on_pass=tell)
        check = _print_check(page, model, masked, digits, tell)
        page.text(f"  finalized against masked: {result.certificate}")
        accuracy["pruned"] = accuracy_of(result.program, digits)
        train(masked, digits, _EPOCHS_MASKED, tell)
        final = finalize(masked, on_pass=tell)
    accuracy[f"fine-tuned for {_EPOCHS_MASKED} epochs while masked"] = accuracy_of(final, digits)
    _print_accuracy(page, accuracy, len(digits.test_y))
    page.files(result.files)
    return Outcome(result, check, accuracy, verify(final, masked, (digits.test_x,)).ok)


def check_against_torch(model: nn.Module, masked: Program, x: Tensor) -> Check:
    """Do with torch.nn.utils.prune what the recipe says, and compare bit for bit."""
    hooked: Any = copy.deepcopy(model)
    torch_prune.ln_structured(hooked.conv2, "weight", amount=0.25, n=2, dim=0)
    pairs = [(getattr(hooked, name), "weight") for name in _WEIGHTS]
    torch_prune.global_unstructured(pairs, pruning_method=torch_prune.L1Unstructured, amount=0.8)
    masks = {f"{name}.weight": getattr(hooked, name).weight_mask for name in _WEIGHTS}
    found = parameters.masks(masked)
    alike = masks.keys() == set(found) and all(same_bits(masks[n], found[n]) for n in masks)
    entries = sum(mask.numel() for mask in masks.values())
    return Check(len(masks), entries, alike, same_bits(hooked(x), masked(x)))


def train(model: nn.Module, digits: Digits, epochs: int, tell: Tell) -> None:
    """Train a model, or fine-tune a masked Program, in place; it is left in eval mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    for epoch in range(1, epochs + 1):
        tell(f"train: epoch {epoch} of {epochs}")
        for at in torch.randperm(len(digits.x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(digits.x[at]), digits.y[at]).backward()
            optimizer.step()
    model.eval()


def accuracy_of(model: nn.Module, digits: Digits) -> float:
    """Return the share of test images whose digit the model finds."""
    with torch.no_grad():
        right = model(digits.test_x).argmax(1) == digits.test_y
    return float(right.float().mean())


def _print_check(
    page: Page, model: nn.Module, masked: Program, digits: Digits, tell: Tell
) -> Check:
    tell("check against torch.nn.utils.prune")
    check = check_against_torch(model, masked, digits.test_x)
    words = {True: "equal bit for bit", False: "DIFFERENT"}
    page.heading("Held to the same calls of torch.nn.utils.prune")
    page.text(
        f"  {check.parameters} masks with {check.entries:,} entries: {words[check.masks]}\n"
        f"  outputs for {len(digits.test_x)} test images: {words[check.outputs]}"
    )
    return check


def _print_accuracy(page: Page, accuracy: dict[str, float], images: int) -> None:
    page.heading(f"Accuracy on {images} other digits")
    width = max(map(len, accuracy))
    for name, value in accuracy.items():
        page.text(f"  {name.ljust(width)}  {value:.2%}")
