"""One torch.export where torch's layers alone read training flags: the graph that two give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError
from fxprune.frontends import module
from fxprune.program.encoding import graph_text
from fxprune.program.program import Program
from fxprune.testing.architecture import Arch, build
from fxprune.testing.drawing import architectures
from tests.models.zoo import QUICK, ZOO
from tests.tools.capture_helpers import check_forwards, net
from tests.tools.profiles import thorough_but

ROWS = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
# Their forwards read a flag, or hand a constant to a dropout.
TWO_EXPORTS = {"stochastic_depth", "aux_head"}


class Exports:
    """Counts exports, and makes the second one of each capture necessary."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._patch = patch
        export = torch.export.export

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return export(*args, **kwargs)

        patch.setattr(torch.export, "export", counted)

    def of(self, model: nn.Module, args: Any, kwargs: Any = None) -> tuple[int, Program]:
        """Capture; return how many exports that took."""
        self.count = 0
        program = fxprune.capture(model, args, kwargs)
        return self.count, program

    def in_both_modes(self, model: nn.Module, args: Any, kwargs: Any = None) -> Program:
        with self._patch.context() as patch:
            patch.setattr(module, "tells_eval_mode", lambda graph, layers: False)
            count, program = self.of(model, args, kwargs)
        assert count == 2
        return program


@pytest.fixture
def exports() -> Iterator[Exports]:
    with pytest.MonkeyPatch.context() as patch:
        yield Exports(patch)


def told(program: Program) -> Any:
    """All of a Program but its tensors' values."""
    captured = program.captured
    return (
        {mode: graph_text(graph) for mode, graph in program.graphs.items()},
        [[(n.name, n.meta) for n in graph.nodes] for graph in program.graphs.values()],
        {name: (x.shape, x.dtype) for name, x in program.state_dict().items()},
        [name for name, _ in program.named_buffers()],
        (replace(captured.inputs, nesting=None), captured.inputs.nesting.skeleton),  # type: ignore
        {mode: nesting.skeleton for mode, nesting in captured.outputs.items()},
        (captured.first, captured.kind, captured.frozen),
        (captured.deciders, captured.notes, captured.refused),
    )


def check_equal(exports: Exports, model: nn.Module, args: Any, kwargs: Any = None) -> int:
    """Hold a capture to that of both modes; return how many exports it took."""
    count, program = exports.of(model, args, kwargs)
    assert told(program) == told(exports.in_both_modes(model, args, kwargs))
    return count


@pytest.mark.parametrize("name", thorough_but({*QUICK[::2], *TWO_EXPORTS}, ZOO))
def test_named_models(name: str, exports: Exports) -> None:
    assert check_equal(exports, *ZOO[name]()) == (2 if name in TWO_EXPORTS else 1)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(architectures())
def test_drawn_networks(exports: Exports, arch: Arch) -> None:
    check_equal(exports, *build(arch))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(6),
    "batch norm without statistics": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "instance norm": lambda: nn.InstanceNorm1d(6, affine=True),
    "instance norm with statistics": lambda: nn.InstanceNorm1d(6, track_running_stats=True),
    "dropout": nn.Dropout,
    "dropout in place": lambda: nn.Dropout(0.1, inplace=True),
    "dropout of nothing": lambda: nn.Dropout(0.0),
    "dropout1d": nn.Dropout1d,
    "alpha dropout": nn.AlphaDropout,
    "feature alpha dropout": nn.FeatureAlphaDropout,
    "rrelu": lambda: nn.RReLU(0.1, 0.4),
    "lstm": lambda: nn.LSTM(8, 4, 2, dropout=0.5, batch_first=True),
    "gru": lambda: nn.GRU(8, 4, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(8, 4, batch_first=True),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2
    ),
    "encoder without dropout": lambda: nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True, norm_first=True
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_that_reads_its_flag(name: str, exports: Exports) -> None:
    layer = LAYERS[name]()
    assert check_equal(exports, net(lambda self, x: self.l(x * 2), l=layer), (ROWS,)) == 1
    assert check_equal(exports, layer, (ROWS,)) == 1


@pytest.mark.parametrize("weights", [True, False])
def test_attention_called_twice(weights: bool, exports: Exports) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y, _ = self.a(x, x, x, need_weights=weights)
        return self.a(y, x, y, need_weights=not weights)

    attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    assert check_equal(exports, net(forward, a=attention), (ROWS,)) == 1


def test_a_layer_called_twice_and_one_under_two_names(exports: Exports) -> None:
    norm, drop = nn.BatchNorm1d(6), nn.Dropout()
    model = nn.Sequential(norm, drop, nn.Linear(8, 8), norm, drop)
    assert check_equal(exports, model, (ROWS,)) == 1


class _Quiet(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p / 2, self.training)


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net(lambda self, x: x * 2)

    @property
    def learning(self) -> bool:
        return self.inner.training

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if self.learning else x + self.inner(x)


class _Own(nn.Module):
    """A flag of its own, that cannot be watched."""

    @property
    def training(self) -> bool:  # type: ignore[override] # pyright: ignore
        return bool(self.__dict__.get("on", True))

    @training.setter
    def training(self, value: bool) -> None:  # pyright: ignore
        self.__dict__["on"] = value

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, training=self.training)


def _is_on(module: nn.Module) -> bool:
    return bool(getattr(module, "training", False))


def _doubled(module: nn.Module, _: Any, y: Any) -> Any:
    return y * 2 if module.training else y


def _hooked() -> nn.Module:
    layer = nn.Dropout()
    layer.register_forward_hook(_doubled)
    return layer


def _writes(self: Any, x: Tensor) -> Tensor:
    self.d.eval()
    return self.d(x)


def _inner() -> nn.Module:
    return net(lambda self, x: x * 3)


TWICE: dict[str, Callable[[], nn.Module]] = {
    "its own flag": lambda: net(lambda self, x: x * 2 if self.training else x),
    "getattr": lambda: net(lambda self, x: x * 2 if getattr(self, "training") else x),  # noqa: B009
    "a helper": lambda: net(lambda self, x: x * 2 if _is_on(self) else x),
    "a helper asks of a submodule": lambda: net(
        lambda self, x: self.d(x) * 2 if _is_on(self.d) else self.d(x), d=_inner()
    ),
    "a property": _Named,
    "any submodule": lambda: net(
        lambda self, x: self.d(x) if any(m.training for m in self.children()) else x, d=_inner()
    ),
    "a functional dropout": lambda: net(lambda self, x: F.dropout(x, training=self.training)),
    "a dropout that is always on": lambda: net(lambda self, x: F.dropout(x)),
    "a subclass": lambda: nn.Sequential(_Quiet()),
    "a hook": lambda: nn.Sequential(_hooked()),
    "a flag of its own kind": lambda: nn.Sequential(_Own()),
    "forward called by itself": lambda: net(lambda self, x: self.d.forward(x), d=nn.Dropout()),
    "forward calls eval": lambda: net(_writes, d=nn.Dropout()),
    "written to after dropout": lambda: net(
        lambda self, x: (y := x * 2, self.d(y).add_(1), y * 3)[2], d=nn.Dropout()
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    ),
}


@pytest.mark.parametrize("name", TWICE)
def test_code_that_reads_a_flag_is_followed_in_both_modes(name: str, exports: Exports) -> None:
    model = TWICE[name]()
    count, program = exports.of(model, (ROWS,))
    assert count == 2
    check_forwards(program, model, (ROWS,))


def test_frozen_attention_has_a_fast_path(exports: Exports) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False)
    assert exports.of(nn.Sequential(layer), (ROWS,))[0] == 2


def test_statistics_of_one_mode_alone_are_refused(exports: Exports) -> None:
    norm = nn.BatchNorm1d(6)
    norm.track_running_stats = False
    with pytest.raises(CaptureError, match="differs between train and eval mode"):
        exports.of(norm, (ROWS,))
    assert exports.count == 2


def test_flags_are_plain_attributes_again(exports: Exports) -> None:
    exports.of(nn.Sequential(nn.Dropout()), (ROWS,))
    assert "training" not in vars(nn.Module)


def test_a_convolutional_net_in_channels_last(exports: Exports) -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(), nn.Flatten()
    )
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    assert check_equal(exports, model, (images,)) == 1
