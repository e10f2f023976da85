"""A pass that promises equal outputs and breaks something, each time another thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxprune.rewrite.passes import Facts, Rewrite
from fxprune.rewrite.rewriter import Rewriter


class Net(nn.Module):
    """Has what can be broken: statistics, dropout, a buffer that is not saved, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.left, self.right = nn.Linear(5, 3), nn.Linear(5, 3)
        self.register_buffer("shift", torch.ones(5), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.norm(self.first(x)) + self.shift)
        return torch.softmax(self.left(y), -1), self.right(y)


def named(rw: Rewriter, text: str) -> Any:
    return next(n for n in rw.program.graph.nodes if text in str(n.target))


def output(rw: Rewriter) -> Any:
    return next(n for n in rw.program.graph.nodes if n.op == "output")


def place(rw: Rewriter, path: str) -> nn.Module:
    return rw.program.get_submodule(path)


def silently(rw: Rewriter) -> None:
    place(rw, "left")._parameters["bias"] = nn.Parameter(torch.ones(3))


def past_the_count(rw: Rewriter) -> None:
    place(rw, "left").get_parameter("bias").data.mul_(2.0)


def in_place(rw: Rewriter) -> None:
    with torch.no_grad():
        place(rw, "left").get_parameter("bias").mul_(2.0)


def frozen(rw: Rewriter) -> None:
    place(rw, "left").get_parameter("bias").requires_grad_(False)


def detached(rw: Rewriter) -> None:
    relu = named(rw, "relu")
    new = rw.call(torch.ops.aten.detach.default, (relu,), relu.next)
    relu.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def swapped(rw: Rewriter) -> None:
    left, right = place(rw, "left"), place(rw, "right")
    biases = left._parameters["bias"], right._parameters["bias"]
    right._parameters["bias"], left._parameters["bias"] = biases
    nodes = named(rw, "left.bias"), named(rw, "right.bias")
    for node, target in zip(nodes, ("right.bias", "left.bias"), strict=True):
        rw.retarget(node, target)


def one_batch(rw: Rewriter) -> None:
    for source in output(rw).args[0]:
        new = rw.call(torch.ops.aten.slice.Tensor, (source, 0, 0, 4), output(rw))
        output(rw).replace_input_with(source, new)


def inputs_written(rw: Rewriter) -> None:
    x = next(n for n in rw.program.graph.nodes if n.op == "placeholder")
    rw.call(torch.ops.aten.mul_.Scalar, (x, 2.0), output(rw))


def outputs_swapped(rw: Rewriter) -> None:
    rw.set_argument(output(rw), 0, tuple(reversed(output(rw).args[0])))


def raising(rw: Rewriter) -> None:
    raise ZeroDivisionError("oh no")


# What breaks it, and how it is told.
FAULTS: dict[str, tuple[Callable[[Rewriter], object], str]] = {
    "wrong dim": (
        lambda rw: rw.set_argument(named(rw, "softmax"), 1, 0),
        r"the first node that differs is softmax.*they differ on x: float32\[1, 4\] of zeros",
    ),
    "bias dropped": (
        lambda rw: rw.set_argument(named(rw, "linear"), 2, None),
        r"the first node that differs is linear \(aten.linear.default in 'first'\)",
    ),
    "momentum": (
        lambda rw: rw.set_argument(named(rw, "batch_norm"), 6, 0.3),
        r"buffer 'norm.running_mean' differs.*the first node that is another one is batch_norm",
    ),
    "outputs swapped": (outputs_swapped, r"the first node that is another one is output|softmax"),
    "one batch": (one_batch, r"float32\[4, 3\] after and float32\[5, 3\] before"),
    "a tensor, silently": (silently, r"the first node that differs is left_bias"),
    "a tensor, in place": (in_place, r"the tensor 'left.bias' was written to"),
    "past torch's count": (past_the_count, r"'left.bias' was written to, past torch's count"),
    "an input": (inputs_written, r"input 0 afterwards differs.*mul__scalar"),
    "a buffer that is not saved": (
        lambda rw: place(rw, "")._buffers.update(shift=torch.zeros(5)),
        r"the first node that differs is shift",
    ),
    "a buffer is not saved any more": (
        lambda rw: place(rw, "norm")._non_persistent_buffers_set.add("num_batches_tracked"),
        r"the key 'norm.num_batches_tracked' went",
    ),
    "a key": (
        lambda rw: rw.program.register_buffer("more", torch.ones(1)),
        r"the key 'more' came",
    ),
    "names swapped": (swapped, r"'left.bias' is the tensor that 'right.bias' was"),
    "training flag": (
        lambda rw: place(rw, "norm").train(not rw.program.training),
        r"the training flag of 'norm' is another one",
    ),
    "frozen": (frozen, r"'left.bias' is not trained"),
    "detached": (detached, r"'first.bias' gets no gradient"),
    "raising": (
        raising,
        r"'breaks' of tests.tools.breaking raised ZeroDivisionError: oh no; nothing",
    ),
}


@dataclass(frozen=True)
class Breaks(Rewrite):
    """Break one thing."""

    name: ClassVar[str] = "breaks"
    promise: ClassVar[str] = "same"

    fault: str = "raising"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        FAULTS[self.fault][0](rewriter)


@dataclass(frozen=True)
class Close(Rewrite):
    """Add a number to what goes into each relu, which is close where it is small."""

    name: ClassVar[str] = "close"
    promise: ClassVar[str] = "close"

    by: float = 0.0

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        node = named(rewriter, "relu")
        new = rewriter.call(torch.ops.aten.add.Tensor, (node.args[0], self.by), before=node)
        rewriter.set_argument(node, 0, new)
