"""Process time of coupled pruning and shrink, part by part, and of Torch-Pruning beside it."""

from __future__ import annotations

import copy
import gc
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import fxprune
from fxprune.compiler.shrinking import cut_channels, shrink
from fxprune.program.forks import fork
from fxprune.program.program import Program
from fxprune.verification.listener import OnPass

PEER = "torch-pruning==1.6.1"
LONG = 10.0  # seconds; what takes longer is timed once
RECIPE: dict[str, Any] = {
    "rule": [
        {
            "select": {"op": ["conv2d", "linear"], "role": "weight"},
            "method": "ln_structured",
            "n": 2,
            "amount": 0.5,
            "coupled": True,
        }
    ]
}


@dataclass(frozen=True)
class Parts:
    """Seconds of process time of each part, medians over the rounds.

    Args:
        masks: of coupled channels found, scored, ranked and masked, on a copy of the Program.
        analysis: of the channels that can go.
        cut: of tensors and graph.
        proof: of all else that finalize and shrink do: copies in float64, and runs of them.
        peer: of Torch-Pruning's init and step; None where it is not installed.
        ratio: the peer's in analysis and cut, the median of the rounds' ratios.
        whole: the same with the masks among ours.
        rounds: how many rounds ours were timed.
        peer_rounds: how many rounds the peer's were.
    """

    masks: float
    analysis: float
    cut: float
    proof: float
    peer: float | None
    ratio: float | None
    whole: float | None
    rounds: int
    peer_rounds: int


@dataclass(frozen=True)
class Rounds:
    """What the rounds left.

    Args:
        parts: the times.
        masked: the masked Program.
        small: the shrunk one.
        pruned: what the peer made; None where it is not installed.
    """

    parts: Parts
    masked: Program
    small: Program
    pruned: nn.Module | None


def peer() -> Any:
    """Return Torch-Pruning; None where it is not installed."""
    try:
        return importlib.import_module("torch_pruning")
    except ImportError:
        return None


def prune_by_peer(model: Any, x: Tensor) -> None:
    """Halve the channels of a model with Torch-Pruning's init and step.

    Args:
        model: changed in place; its last layer is `fc`.
        x: an example.
    """
    tp = peer()
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    options = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": [model.fc]}
    tp.pruner.BasePruner(model, x, **options).step()


def timed(call: Callable[..., object], *args: object) -> float:
    """Return the seconds of process time of a call; garbage of others is collected before."""
    gc.collect()
    start = time.process_time()
    call(*args)
    return time.process_time() - start


def split_cut(final: Program) -> tuple[float, float]:
    """Return the seconds of the analysis and of the cut of a finalized Program."""
    work = fork(final)
    marks: dict[str, float] = {}

    def note(name: str) -> None:
        marks.setdefault(name, time.process_time())

    gc.collect()
    start = time.process_time()
    cut_channels(work, 1, [OnPass(note)])
    end = time.process_time()
    cut = marks.get("shrink", end)
    return cut - start, end - cut


def parts_of(program: Program, model: nn.Module, x: Tensor, rounds: int) -> Rounds:
    """Time both sides in turns; copies of the peer's model and forks of ours are not timed.

    Args:
        program: the captured model, in eval mode.
        model: the model.
        x: an example for the peer.
        rounds: how many.
    """
    made: dict[str, Program] = {}
    made["masked"] = fxprune.prune(program, RECIPE)
    final_time = timed(lambda: made.update(final=fxprune.finalize(made["masked"])))
    shrink_time = timed(lambda: made.update(small=shrink(made["final"])))
    own: list[tuple[float, float, float]] = []
    others: list[float] = []
    pruned: nn.Module | None = None
    for _ in range(rounds):
        masks = timed(lambda: fxprune.prune(program, RECIPE))
        own.append((masks, *split_cut(made["final"])))
        if peer() is not None and max(others, default=0.0) < LONG:
            pruned = copy.deepcopy(model)
            others.append(timed(lambda pruned=pruned: prune_by_peer(pruned, x)))
    masks, analysis, cut = (statistics.median(column) for column in zip(*own, strict=True))
    proof = max(final_time + shrink_time - analysis - cut, 0.0)
    parts = Parts(
        *(masks, analysis, cut, proof),
        peer=statistics.median(others) if others else None,
        ratio=_ratio(others, [a + c for _, a, c in own]),
        whole=_ratio(others, [sum(times) for times in own]),
        rounds=len(own),
        peer_rounds=len(others),
    )
    return Rounds(parts, made["masked"], made["small"], pruned)


def _ratio(others: list[float], own: list[float]) -> float | None:
    """Return the median of the rounds' ratios; of the rounds that both were timed in."""
    ratios = [b / a for a, b in zip(own, others, strict=False)]
    return statistics.median(ratios) if ratios else None
