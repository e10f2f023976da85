"""From zeros to a smaller, faster model: coupled pruning, shrink, and fine-tuning after it.

    python examples/shrinking.py

A small residual CNN learns scikit-learn's digits. Half of the channels of every layer are masked
with all that goes with them, a few steps are trained while masked, then `shrink` cuts them out: the
function is the same, the model smaller and faster. The optimizer's state is carried over, and
training goes on with the small one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.channels import Latency, latency_of
from fxprune.cli.demo import Digits, accuracy_of, read_digits

RECIPE = {
    "rule": [
        {
            "name": "half",
            "select": {"op": ["conv2d", "linear"], "role": "weight"},
            "method": "ln_structured",
            "n": 2,
            "amount": 0.5,
            "coupled": True,
        }
    ]
}


@dataclass(frozen=True)
class Outcome:
    """What the script found.

    Args:
        accuracy: the share of test digits recognised, after each stage.
        parameters: how many there are, after each stage.
        latency: forwards of the shrunk program beside the dense one, a batch size each.
        difference: the largest difference between outputs of the masked and the shrunk program.
    """

    accuracy: dict[str, float]
    parameters: dict[str, int]
    latency: tuple[Latency, ...]
    difference: float


class Block(nn.Module):
    """Two convolutions around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return an image of the same shape."""
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """A stem, two blocks, and a linear layer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width), nn.MaxPool2d(2), Block(width))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the ten digits, (n, 10)."""
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Tensor], digits: Digits
) -> None:
    """Train on some batches of indices, and leave the model in eval mode."""
    model.train()
    for at in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(digits.x[at]), digits.y[at]).backward()
        optimizer.step()
    model.eval()


def epochs(count: int, digits: Digits) -> Iterator[Tensor]:
    """Yield batches of indices, each epoch in an order of its own."""
    for _ in range(count):
        yield from torch.randperm(len(digits.x)).split(64)


def main(dense_epochs: int = 6, more_epochs: int = 2) -> Outcome:
    """Train, prune, shrink and fine-tune.

    Args:
        dense_epochs: how long the dense model is trained.
        more_epochs: how long it is fine-tuned, while masked and after the shrink.
    """
    torch.manual_seed(0)
    digits = read_digits()
    program = fxprune.capture(Net(), (digits.x[:4],))
    train(
        program,
        torch.optim.AdamW(program.parameters(), lr=2e-3),
        epochs(dense_epochs, digits),
        digits,
    )
    masked = fxprune.prune(program, RECIPE).eval()
    optimizer = torch.optim.AdamW(masked.parameters(), lr=1e-3)
    stages: dict[str, fxprune.Program] = {"dense": program, "masked": masked}
    accuracy = {name: accuracy_of(stage, digits) for name, stage in stages.items()}
    train(masked, optimizer, epochs(more_epochs, digits), digits)
    small = fxprune.shrink(fxprune.finalize(masked)).eval()
    moved = fxprune.transplant(optimizer, small, before=masked)
    with torch.no_grad():
        difference = float((small(digits.test_x) - masked(digits.test_x)).abs().max())
    accuracy["fine-tuned while masked"] = accuracy_of(masked, digits)
    accuracy["shrunk"] = accuracy_of(small, digits)
    times = [latency_of(small, program, batch=batch, seconds=0.3) for batch in (1, 8)]
    print(fxprune.report(small).shrinks[0])
    train(small, moved, epochs(more_epochs, digits), digits)
    accuracy["shrunk, fine-tuned"] = accuracy_of(small, digits)
    parameters = {
        name: sum(p.numel() for p in stage.parameters())
        for name, stage in {**stages, "shrunk": small}.items()
    }
    latency = tuple(each for each in times if each is not None)
    outcome = Outcome(accuracy, parameters, latency, difference)
    show(outcome)
    return outcome


def show(outcome: Outcome) -> None:
    """Print what was found."""
    for name, share in outcome.accuracy.items():
        print(f"{name:24} {share:7.2%}")
    for each in outcome.latency:
        print(f"latency, {each}")
    print(f"masked and shrunk differ by {outcome.difference:.1e} at most")


if __name__ == "__main__":
    main()
