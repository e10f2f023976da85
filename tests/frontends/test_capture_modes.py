"""Live modes: flags of single submodules, the source's own train(), and what they turn on."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import InvariantError
from fxprune.program.program import BOTH
from tests.tools.capture_helpers import check_forwards, check_same, masked, net, run, state_of

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(4, 3, generator=GENERATOR)
IMAGES = torch.randn(4, 3, 6, 6, generator=GENERATOR)


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def check_captured(model: nn.Module, *example: Tensor) -> fxprune.Program:
    program = fxprune.capture(model, example)
    check_forwards(program, copy.deepcopy(model), example)
    return program


def noisy_when_training(self: Any, x: Tensor) -> Tensor:
    return x + self.l(x) * torch.rand(()) if self.training else x + self.l(x)


def noisy() -> nn.Module:
    return net(noisy_when_training, l=nn.Linear(3, 3))


# Flags


def test_flags_of_single_submodules() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.Dropout(0.2)
    )
    program = fxprune.capture(model, (IMAGES,))
    assert list(program.graphs) == [BOTH]
    for off in ("1", "2", "3", "4"):
        for start in (True, False):
            for m in (model, program):
                m.train(start)
                m.get_submodule(off).train(not start)
            check_same(run(program, (IMAGES,)), run(model, (IMAGES,)), (off, start))
            check_same(state_of(program), state_of(model), (off, start))
    program.train().get_submodule("3").eval()
    for ours in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        assert flags(ours) == flags(program)


def test_a_program_starts_with_the_flags_of_its_source() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).eval()
    model[1].train()
    program = fxprune.capture(model, (IMAGES,))
    assert flags(program) == flags(model) == [False, False, True, False]
    check_same(run(program, (IMAGES,)), run(model, (IMAGES,)))
    check_same(state_of(program), state_of(model))


def test_the_sources_own_train_is_followed() -> None:
    class Contrary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)
            self.other = nn.BatchNorm2d(3)

        def train(self, mode: bool = True) -> Contrary:
            super().train(mode)
            self.bn.train(not mode)
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.bn(x))

    model = Contrary()
    program = check_captured(model, IMAGES)
    for ours in (program, copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        for mode in (True, False):
            assert flags(ours.train(mode)) == flags(model.train(mode))
    assert flags(program.eval()) == flags(model.eval())


def test_a_flag_of_another_module_decides() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.dropout(self.l(x), training=self.l.training)
        return F.dropout(x, training=not self.training)

    model = net(forward, l=nn.Linear(3, 2))
    check_captured(model, ROWS)


# A graph for each mode


def test_deciders_choose_the_graph_and_must_agree() -> None:
    model = nn.Sequential(noisy(), nn.Dropout(0.2), noisy())
    program = check_captured(model, ROWS)
    assert list(program.graphs) == ["train", "eval"]
    assert program.captured.deciders == ("0", "2")
    program.train().get_submodule("0").eval()
    with pytest.raises(InvariantError, match="disagree: on for '2', off for '0'; call train"):
        program(ROWS)
    for ours in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        assert flags(ours) == flags(program)
    program.get_submodule("2").eval()
    model.train()
    for name in ("0", "2"):
        model.get_submodule(name).eval()
    check_same(run(program, (ROWS,)), run(model, (ROWS,)))


def test_the_root_may_decide_beside_a_submodule() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = self.inner(x)
        return (x, self.aux(x)) if self.training else x

    model = net(forward, inner=noisy(), aux=nn.Linear(3, 2))
    program = check_captured(model, ROWS)
    assert set(program.captured.deciders) == {"", "inner"}
    program.train().get_submodule("inner").eval()
    with pytest.raises(InvariantError, match="on for '', off for 'inner'"):
        program(ROWS)


def test_a_flag_may_choose_what_is_returned_or_a_constant_alone() -> None:
    def nested(self: Any, x: Tensor) -> Any:
        x = self.l(x)
        return (x, x) if self.training else x

    def scaled(self: Any, x: Tensor) -> Tensor:
        return self.l(x) * (2 if self.training else 3)

    def chosen(self: Any, x: Tensor) -> Tensor:
        first, second = self.l(x), self.l(2 * x)
        return first if self.training else second

    for forward in (nested, scaled, chosen):
        program = check_captured(net(forward, l=nn.Linear(3, 2)), ROWS)
        assert program.captured.deciders == ("",)


def test_a_parent_may_read_the_flag_of_its_submodule() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.inner(x)
        return torch.tanh(x) if self.inner.training else x

    inner = net(lambda self, x: self.l(x), l=nn.Linear(3, 2))
    program = check_captured(nn.Sequential(nn.ReLU(), net(forward, inner=inner)), ROWS)
    assert program.captured.deciders == ("1.inner",)


def test_flags_that_a_model_never_sees_mixed_may_not_run_so() -> None:
    def pair(self: Any, x: Tensor) -> Any:
        return (self.l(x), x) if self.training else self.l(x)

    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.inner(x)
        return torch.add(*found) if self.training else torch.relu(found)

    program = check_captured(net(forward, inner=net(pair, l=nn.Linear(3, 3))), ROWS)
    assert program.captured.deciders == ("", "inner")


def test_the_search_for_deciders_does_not_run_the_model_for_each_block() -> None:
    runs: list[int] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        runs.append(len(self.blocks))
        return self.blocks(x)

    for count in (1, 6):
        blocks = nn.Sequential(*(noisy() for _ in range(count)))
        program = fxprune.capture(net(forward, blocks=blocks), (ROWS,))
        assert program.captured.deciders == tuple(f"blocks.{i}" for i in range(count))
    assert runs.count(1) == runs.count(6)


@pytest.mark.parametrize("flag", [True, False])
def test_a_program_with_two_graphs_is_edited_in_any_mode(flag: bool) -> None:
    """The flags may disagree while passes run: no graph is run then."""
    model = nn.Sequential(noisy(), noisy())
    program = fxprune.capture(model, (ROWS,)).train(flag)
    program.get_submodule("0").train(not flag)
    pruned = masked(program)
    final = fxprune.finalize(pruned)
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in pruned.masks.items():
            dense.get_parameter(name).mul_(mask)
    for train in (True, False):
        for ours in (pruned, final):
            check_same(run(ours.train(train), (ROWS,)), run(dense.train(train), (ROWS,)))


# Norms


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine": False},
        {"track_running_stats": False},
        {"momentum": 0.3, "eps": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d, nn.InstanceNorm2d, nn.SyncBatchNorm], ids=lambda kind: kind.__name__
)
def test_norms_with_running_statistics(norm: Any, options: dict[str, Any]) -> None:
    tracked = {"track_running_stats": True, **options}
    check_captured(nn.Sequential(nn.Conv2d(3, 4, 3), norm(4, **tracked)), IMAGES)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_a_norm_called_twice_counts_twice(norm: Any) -> None:
    model = net(lambda self, x: self.n(self.n(x) * 2), n=norm(3, track_running_stats=True))
    program = check_captured(model, IMAGES)
    before = int(program.n.num_batches_tracked)
    program.train()(IMAGES)
    counted = 2 if norm is nn.BatchNorm2d else 0  # instance norms count nothing
    assert int(program.n.num_batches_tracked) == before + counted


def test_functional_batch_norm_with_the_modules_flag() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=self.training)

    model = net(forward)
    model.register_buffer("mean", torch.zeros(3))
    model.register_buffer("var", torch.ones(3))
    check_captured(model, IMAGES)


def test_a_cumulative_batch_norm_is_captured_or_refused() -> None:
    """momentum=None reads its counter as a number: torch.export refuses that."""
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=None))
    with pytest.raises(fxprune.FxpruneError, match=r"torch\.export cannot take Sequential whole"):
        fxprune.capture(model, (IMAGES,))


# Dropouts

DROPOUTS: list[tuple[Any, tuple[int, ...]]] = [
    (nn.Dropout, (4, 5)),
    (nn.Dropout1d, (4, 3, 5)),
    (nn.Dropout2d, (4, 3, 5, 5)),
    (nn.Dropout3d, (4, 3, 2, 2, 5)),
    (nn.AlphaDropout, (4, 5)),
    (nn.FeatureAlphaDropout, (4, 3, 5)),
    (nn.RReLU, (4, 5)),
]
each_dropout = pytest.mark.parametrize(
    ("kind", "shape"), DROPOUTS, ids=[kind.__name__ for kind, _ in DROPOUTS]
)


@each_dropout
@pytest.mark.parametrize("inplace", [False, True])
def test_dropouts(kind: Any, shape: tuple[int, ...], inplace: bool) -> None:
    model = nn.Sequential(nn.Linear(5, 5), kind(inplace=inplace), nn.Linear(5, 2))
    check_captured(model, torch.randn(shape))


@each_dropout
def test_dropouts_beside_their_input(kind: Any, shape: tuple[int, ...]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.l(x)
        return self.drop(y) + y

    model = net(forward, l=nn.Linear(5, 5), drop=kind())
    check_captured(model, torch.randn(shape))


@each_dropout
def test_dropouts_called_twice(kind: Any, shape: tuple[int, ...]) -> None:
    model = net(lambda self, x: self.drop(self.l(self.drop(x))), l=nn.Linear(5, 5), drop=kind())
    check_captured(model, torch.randn(shape))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.dropout(self.l(x), 0.3, training=True),
        lambda self, x: F.dropout(F.dropout(self.l(x)), training=self.training),
        lambda self, x: F.dropout(F.dropout(self.l(x), training=self.training)),
        lambda self, x: F.rrelu(self.l(x), training=True),
        lambda self, x: self.drop(F.dropout(self.l(x))),
    ],
    ids=["alone", "before", "after", "rrelu", "module"],
)
def test_dropout_that_is_always_on_stays_on_in_eval(forward: Any) -> None:
    """Monte Carlo dropout: the constant True is no mode."""
    program = check_captured(net(forward, l=nn.Linear(3, 40), drop=nn.Dropout()), ROWS)
    program.eval()
    assert not torch.equal(run(program, (ROWS,), seed=1), run(program, (ROWS,), seed=2))


def test_attention_with_dropout_and_weights() -> None:
    model = net(
        lambda self, x: self.a(x, x, x),
        a=nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True),
    )
    check_captured(model, torch.randn(4, 5, 4))


def test_scaled_attention_with_the_modules_flag() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.l(x)
        p = 0.3 if self.training else 0.0
        return F.scaled_dot_product_attention(y, y, y, dropout_p=p)

    check_captured(net(forward, l=nn.Linear(3, 4)), torch.randn(4, 2, 5, 3))


@pytest.mark.parametrize(
    "layer",
    [
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        nn.LSTM(4, 3, 2, dropout=0.5, batch_first=True),
        nn.LSTM(4, 3, proj_size=2, batch_first=True),
        nn.GRU(4, 3, 2, dropout=0.5, bidirectional=True, batch_first=True),
    ],
    ids=["transformer", "lstm", "projected", "gru"],
)
def test_layers_with_dropout_inside(layer: nn.Module) -> None:
    check_captured(layer, torch.randn(4, 5, 4))
