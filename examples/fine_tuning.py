"""Fine-tune while masked, then finalize, and see what an optimizer step does after that.

    python examples/fine_tuning.py

While a parameter is masked, training cannot bring a pruned weight back: the product with the mask
is zero whatever the optimizer does. WARNING: after finalize there is no mask any more. The zeros
are ordinary weights, and the first optimizer step makes them grow again. Fine-tune before finalize,
never after; the last lines of this script show why.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fxprune

RECIPE = {
    "rule": [
        {
            "select": {"op": "linear", "param": "weight"},
            "method": "l1_unstructured",
            "scope": "global",
            "amount": 0.9,
        }
    ]
}
TRAINED_ON = 1_297  # of 1,797 digits


@dataclass(frozen=True)
class Outcome:
    """What the script found.

    Args:
        accuracy: the share of test digits recognised, after each stage.
        zeros: how many weights are zero, after each stage.
    """

    accuracy: dict[str, float]
    zeros: dict[str, int]


@dataclass(frozen=True)
class Digits:
    """Handwritten digits: images as vectors, (n, 64), and labels, (n,)."""

    x: Tensor
    y: Tensor

    @classmethod
    def load(cls) -> tuple[Digits, Digits]:
        """Return scikit-learn's digits, some to train on and some to test on."""
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
        return cls(x[:TRAINED_ON], y[:TRAINED_ON]), cls(x[TRAINED_ON:], y[TRAINED_ON:])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits, steps: int) -> None:
    """Take some optimizer steps, each on all digits."""
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(digits.x), digits.y).backward()
        optimizer.step()
    model.eval()


def accuracy_of(model: nn.Module, digits: Digits) -> float:
    """Return the share of digits that the model recognises."""
    with torch.no_grad():
        return float((model(digits.x).argmax(1) == digits.y).float().mean())


def zeros_of(program: fxprune.Program) -> int:
    """Count the zeros in all parameters, masks applied."""
    return fxprune.report(program).zeros


def main(steps: int = 100) -> Outcome:
    """Train, prune, fine-tune, finalize, and take the one step too many.

    Args:
        steps: how many optimizer steps to train and to fine-tune.
    """
    torch.manual_seed(0)
    training, test = Digits.load()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    program = fxprune.capture(model, (training.x,))
    optimizer = torch.optim.Adam(program.parameters(), lr=1e-2)
    accuracy: dict[str, float] = {}
    zeros: dict[str, int] = {}

    def note(stage: str, program: fxprune.Program) -> None:
        accuracy[stage], zeros[stage] = accuracy_of(program, test), zeros_of(program)
        print(f"{stage:<28} accuracy {accuracy[stage]:6.2%}   zeros {zeros[stage]:>5,}")

    train(program, optimizer, training, steps)
    note("dense", program)

    # In place: the Parameter objects stay, so the optimizer from before pruning goes on.
    fxprune.prune(program, RECIPE, inplace=True)
    note("pruned", program)
    train(program, optimizer, training, steps)
    note("fine-tuned while masked", program)

    final = fxprune.finalize(program)
    note("finalized", final)
    train(final, torch.optim.Adam(final.parameters(), lr=1e-2), training, 1)
    note("one step after finalize", final)
    print(
        f"WARNING: that step made {zeros['finalized'] - zeros['one step after finalize']:,} of "
        f"{zeros['finalized']:,} zeros grow again: nothing keeps them once the masks are folded in."
    )
    return Outcome(accuracy, zeros)


if __name__ == "__main__":
    main()
