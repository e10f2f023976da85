"""Prune at compile time: a recipe prunes the model, torch.compile takes the result whole.

    python examples/compile_time.py
    python examples/compile_time.py --backend aot_eager

fxprune captures, masks, folds the masks and proves the result equal, before the compiler of kernels
sees the model. A mask is one product in a graph, so that the masked Program compiles in one piece
too (fullgraph=True), and goes on training when compiled. Masks do not make a dense kernel faster;
the point is that pruning is one more compiler pass, checked as such.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune

RECIPE = {
    "rule": [
        {
            "name": "filters",
            "select": {"op": "conv2d", "param": "weight", "exclude": "stem.*"},
            "method": "ln_structured",
            "n": 2,
            "dim": 0,
            "amount": 0.25,
        },
        {
            "name": "weights",
            "select": {"op": ["conv2d", "linear"], "param": "weight"},
            "method": "l1_unstructured",
            "scope": "global",
            "amount": 0.5,
        },
    ],
    "finalize": {},
}

# The eager backends run the very kernels that eager mode runs. Inductor fuses operators and sums in
# another order: a few units in the last place of float32, for outputs of about 1.
TOLERANCE = {"eager": 0.0, "aot_eager": 0.0, "inductor": 1e-5}


class Net(nn.Module):
    """A small residual network for images of 3 x 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of ten classes, (n, 10)."""
        x = F.relu(self.stem(x))
        x = x + self.conv2(F.relu(self.norm(self.conv1(x))))
        return self.fc(F.relu(x).mean((2, 3)))


def largest_difference(program: fxprune.Program, x: Tensor, backend: str) -> float:
    """Compile a Program in one piece, and compare it with itself in eager mode.

    Args:
        program: any Program, in eval mode.
        x: images, (n, 3, 16, 16).
        backend: of torch.compile.

    Returns:
        The largest absolute difference of outputs.
    """
    compiled = torch.compile(program, fullgraph=True, backend=backend)
    with torch.no_grad():
        return float((compiled(x) - program(x)).abs().max())


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prune, compile and compare; return the largest difference of each Program.

    Raises:
        RuntimeError: a compiled Program computes something else.
    """
    parser = argparse.ArgumentParser(description="Prune a model, then compile it.")
    parser.add_argument("--backend", default="inductor", choices=TOLERANCE)
    backend = parser.parse_args(argv).backend

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(8, 3, 16, 16)
    result = fxprune.compile(model, RECIPE, (x,))
    print(result.report)
    print(result.certificate)

    programs = {
        "masked": fxprune.prune(model, RECIPE, args=(x,)),
        "finalized": result.program,
    }
    found: dict[str, float] = {}
    for name, program in programs.items():
        found[name] = largest_difference(program, x, backend)
        print(f"{name}, compiled by {backend}: differs from eager by at most {found[name]:.2g}")
        if found[name] > TOLERANCE[backend]:
            raise RuntimeError(f"{name}: more than {TOLERANCE[backend]} is not rounding")
    return found


if __name__ == "__main__":
    main()
