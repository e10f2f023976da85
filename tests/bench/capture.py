"""Measure capture beside one plain torch.export, its growth, and the whole job beside a peer.

    python -m tests.bench.capture --rounds 5

Times are process time, of both sides in turns in one process, after a warm-up; a ratio is the
median of the rounds' ratios. The whole job is capture, half of every layer's channels masked,
finalize and shrink, in place and not certified; Torch-Pruning's init and step stand beside it,
where it is installed. The exit code is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxprune
from fxprune.program.program import Program
from fxprune.support.torch_state import quiet_export
from tests.bench.models_vision import densenet121, mobilenet_v2, resnet50
from tests.bench.shrink_growth import WIDTH, residual_net
from tests.bench.shrink_times import PEER, RECIPE, peer, prune_by_peer, timed

Made = Callable[[], tuple[nn.Module, Tensor]]


def _images(model: Callable[[], nn.Module]) -> Made:
    return lambda: (model().eval(), torch.randn(2, 3, 224, 224))


def _blocks(depth: int) -> Made:
    return lambda: (residual_net(WIDTH, depth).eval(), torch.randn(2, 3, 8, 8))


def _encoder() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    return nn.TransformerEncoder(layer, 6), torch.randn(2, 16, 128)


CAPTURED: dict[str, Made] = {
    "ResNet-50": _images(resnet50),
    "MobileNetV2": _images(mobilenet_v2),
    "encoder of 6 layers": _encoder,
    "32 residual blocks": _blocks(32),
    "128 residual blocks": _blocks(128),
}
# Times the peer that our side may take after the capture.
PEERS: dict[str, tuple[Made, float]] = {
    "ResNet-50": (_images(resnet50), 1.0),
    "MobileNetV2": (_images(mobilenet_v2), 1.0),
    "DenseNet-121": (_images(densenet121), 1 / 3),
}
MOST, MOST_GROWTH = 1.5, 4.5


@dataclass(frozen=True)
class Bar:
    """One figure, and what it may be.

    Args:
        name: what was measured.
        seconds: of ours and of what stands beside it.
        ratio: of the two.
        most: the largest ratio that will do; None where there is no bar.
    """

    name: str
    seconds: tuple[float, float]
    ratio: float
    most: float | None

    @property
    def missed(self) -> bool:
        """Whether the ratio is too large."""
        return self.most is not None and self.ratio > self.most


def _bar(name: str, own: list[float], other: list[float], most: float | None) -> Bar:
    ratio = statistics.median(a / b for a, b in zip(own, other, strict=True))
    return Bar(name, (statistics.median(own), statistics.median(other)), ratio, most)


def _export(model: nn.Module, x: Tensor) -> None:
    with quiet_export():
        dims = ({0: torch.export.Dim.AUTO},)
        torch.export.export(model, (x,), strict=False, dynamic_shapes=dims)


def _shrink(program: Program) -> None:
    """All that comes after the capture, in place, as the peer works."""
    fxprune.prune(program, RECIPE, inplace=True)
    fxprune.finalize(program, certify=False, inplace=True)
    fxprune.shrink(program, certify=False, inplace=True)


def measure_captures(rounds: int) -> list[Bar]:
    """Time captures beside exports, and the growth of captures and whole jobs with the depth."""
    bars: list[Bar] = []
    whole: dict[str, tuple[list[float], list[float]]] = {}
    for name, made in CAPTURED.items():
        model, x = made()
        program = fxprune.capture(model, x).eval()
        own, other, after = list[float](), list[float](), list[float]()
        for _ in range(rounds):
            other.append(timed(_export, model, x))
            own.append(timed(fxprune.capture, model, x))
            if "blocks" in name:
                after.append(timed(_shrink, copy.deepcopy(program)))
        most = None if name.startswith("128") else MOST
        bars.append(_bar(f"{name}: capture beside one export", own, other, most))
        whole[name] = own, [a + b for a, b in zip(own, after, strict=False)]
    (own, job), (deep, deep_job) = whole["32 residual blocks"], whole["128 residual blocks"]
    bars.append(_bar("128 blocks beside 32: capture", deep, own, MOST_GROWTH))
    bars.append(_bar("128 blocks beside 32: whole job", deep_job, job, MOST_GROWTH))
    return bars


def measure_jobs(rounds: int) -> list[Bar]:
    """Time whole jobs beside Torch-Pruning's."""
    bars: list[Bar] = []
    for name, (made, most) in PEERS.items():
        model, x = made()
        program = fxprune.capture(model, x).eval()
        captured, after, others = list[float](), list[float](), list[float]()
        for _ in range(rounds):
            captured.append(timed(fxprune.capture, model, x))
            after.append(timed(_shrink, copy.deepcopy(program)))
            others.append(timed(prune_by_peer, copy.deepcopy(model), x[:1]))
        job = [a + b for a, b in zip(captured, after, strict=True)]
        bars.append(_bar(f"{name}: whole job beside the peer's", job, others, None))
        bars.append(_bar(f"{name}: what follows the capture", after, others, most))
    return bars


def _table(bars: list[Bar]) -> Table:
    table = Table(box=None, title_justify="left", padding=(0, 1, 0, 0))
    for column in ("", "seconds", "beside", "ratio", "at most", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for bar in bars:
        most = "" if bar.most is None else f"{bar.most:.2f}"
        own, other = (f"{seconds:.2f}" for seconds in bar.seconds)
        table.add_row(bar.name, own, other, f"{bar.ratio:.2f}", most, "missed" * bar.missed)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 where a bar is missed, else 0.

    Args:
        argv: the arguments of the command line; by default those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench.capture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often both sides are timed")
    rounds = parser.parse_args(argv).rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warm, x = residual_net(8, 1), torch.randn(2, 3, 8, 8)
    _export(warm, x)
    _shrink(fxprune.capture(warm, x).eval())
    bars = measure_captures(rounds)
    console = Console()
    if peer() is None:
        console.print(f"Torch-Pruning is not installed: `pip install {PEER}` to measure it too")
    else:
        bars += measure_jobs(rounds)
    console.print(f"torch {torch.__version__}, 1 thread, load {os.getloadavg()[0]:.1f}")
    console.print(_table(bars), soft_wrap=True)
    return int(any(bar.missed for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
