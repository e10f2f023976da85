"""Networks on which a shrink that takes every operator for channel-wise goes wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.program.program import Program
from tests.models.shrink_steps import Function
from tests.tools.shrink_checks import cuts, parameters, shrink_and_check

ORDER = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])


class Between(nn.Module):
    """Something between two convolutions."""

    def __init__(self, between: nn.Module, width: int = 8, *, dead: slice, bias: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.between = nn.Conv2d(3, 8, 1), between
        self.b = nn.Conv2d(width, 5, 1)
        assert self.a.bias is not None
        with torch.no_grad():
            self.a.weight[dead] = 0
            self.a.bias[dead] = bias

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def between(
    function: Callable[..., Tensor] | nn.Module, width: int = 8, *, dead: slice, bias: float = 0.0
) -> Program:
    step = function if isinstance(function, nn.Module) else Function(function)
    model = Between(step, width, dead=dead, bias=bias)
    return program_of(model, torch.randn(2, 3, 6, 6))


def program_of(model: nn.Module, *args: Tensor) -> Program:
    wide = tuple(x.double() if x.is_floating_point() else x for x in args)
    return fxprune.capture(model.double(), wide).eval()


def last_read(x: Tensor) -> Tensor:
    y = x + 1
    return F.relu_(y) + y


@pytest.mark.smoke
def test_channels_are_followed_through_a_flip():
    _, record = shrink_and_check(between(lambda x: x.flip(1), dead=slice(0, 3)))
    assert cuts(record)["a.weight", 0] == (3, 4, 5, 6, 7)
    assert cuts(record)["b.weight", 1] == (0, 1, 2, 3, 4)


def test_channels_are_followed_through_a_permutation_by_index():
    _, record = shrink_and_check(between(lambda x: x[:, ORDER], dead=slice(0, 3)))
    assert cuts(record)["a.weight", 0] == (3, 4, 5, 6, 7)
    assert cuts(record)["b.weight", 1] == (0, 4, 5, 6, 7)


def test_a_gram_matrix_stays_with_a_reason():
    gram = between(lambda x: (x.flatten(2) @ x.flatten(2).mT).unsqueeze(-1), dead=slice(0, 3))
    small, record = shrink_and_check(gram)
    # Its rows are channels too: dead ones go, and the columns, which a convolution runs over, stay.
    assert parameters(small) == parameters(gram)
    assert record.stays != ()


def test_whole_blocks_go_before_a_pixel_shuffle():
    _, record = shrink_and_check(between(nn.PixelShuffle(2), 2, dead=slice(0, 4)))
    assert cuts(record)["a.weight", 0] == (4, 5, 6, 7)
    assert cuts(record)["b.weight", 1] == (1,)


def test_parts_of_blocks_stay_before_a_pixel_shuffle():
    _, record = shrink_and_check(between(nn.PixelShuffle(2), 2, dead=slice(0, 3)))
    assert record.maps == ()


def test_a_gate_of_one_channel_stays():
    gate = nn.Conv2d(8, 1, 1)
    _, record = shrink_and_check(
        between(Function(lambda x, g: x * g(x).sigmoid(), gate), dead=slice(0, 3))
    )
    assert cuts(record)["between.parts.0.weight", 1] == (3, 4, 5, 6, 7)
    assert ("between.parts.0.weight", 0) not in cuts(record)


def test_a_constant_that_meets_zeros_of_padding_stays():
    inside = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    program = between(inside, dead=slice(0, 3), bias=0.5)
    _, record = shrink_and_check(program)
    assert record.maps == ()
    assert any("live channel" in stay.reason for stay in record.stays)


def test_a_constant_that_relu_makes_zero_goes_through_padding():
    inside = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    _, record = shrink_and_check(between(inside, dead=slice(0, 3), bias=-0.5))
    assert cuts(record)["a.weight", 0] == (3, 4, 5, 6, 7)


def test_a_constant_without_padding_is_absorbed():
    small, record = shrink_and_check(between(nn.ReLU(), dead=slice(0, 3), bias=0.5))
    assert record.absorbed == ("b.bias",)
    assert small.get_parameter("a.weight").shape[0] == 5


def test_an_in_place_relu_that_is_read_twice_keeps_its_meaning():
    _, record = shrink_and_check(between(last_read, dead=slice(0, 3)))
    assert cuts(record)["a.weight", 0] == (3, 4, 5, 6, 7)


def test_writing_through_a_view_blocks_with_a_reason():
    def write(x: Tensor) -> Tensor:
        y = x * 1
        y[:, :2].fill_(0.5)
        return y

    _, record = shrink_and_check(between(write, dead=slice(0, 3)))
    assert record.maps == ()
    assert any("other names" in block.reason for block in record.blocked)


def test_a_grouped_convolution_keeps_equal_counts():
    _, record = shrink_and_check(between(nn.Conv2d(8, 8, 1, groups=2), dead=slice(0, 5)))
    # Channel 4 pairs with channel 0; 1, 2 and 3 pair with 5, 6 and 7, which are alive.
    assert cuts(record)["a.weight", 0] == (1, 2, 3, 5, 6, 7)
    assert cuts(record)["between.weight", 1] == (1, 2, 3)


def test_a_layer_norm_over_channels_keeps_them():
    norm = Function(lambda x, n: n(x.movedim(1, -1)).movedim(-1, 1), nn.LayerNorm(8))
    _, record = shrink_and_check(between(norm, dead=slice(0, 3)))
    assert record.maps == ()
    assert any(stay.reason == "a norm counts all channels" for stay in record.stays)


def test_halves_of_a_chunk_gate_go_together():
    def gate(x: Tensor) -> Tensor:
        value, mask = x.chunk(2, 1)
        return value * mask.sigmoid()

    _, record = shrink_and_check(between(gate, 4, dead=slice(0, 2)))
    assert cuts(record)["a.weight", 0] == (2, 3, 6, 7)
    assert cuts(record)["b.weight", 1] == (2, 3)


def test_a_layer_of_which_all_rows_are_masked_keeps_one():
    _, record = shrink_and_check(between(nn.ReLU(), dead=slice(0, 8)))
    assert len(cuts(record)["a.weight", 0]) == 1
    assert any("one channel at least" in stay.reason for stay in record.stays)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.a, self.b, self.o = (nn.Linear(*s) for s in ((3, 6), (6, 6), (6, 6), (6, 2)))
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.b(torch.relu(self.a(self.i(x))))))


def test_tied_layers_are_cut_once():
    model, dead = Tied(), [0, 3]
    with torch.no_grad():
        for part in (model.i, model.a, model.b):
            part.weight[dead] = 0
            part.bias[dead] = 0
        model.a.weight[:, dead] = 0
    small, record = shrink_and_check(program_of(model, torch.randn(2, 3)))
    assert small.get_submodule("a").weight is small.get_submodule("b").weight
    assert small.get_submodule("a").weight.shape == (4, 4)
    assert [each.tensor for each in record.maps].count("a.weight") == 2


def test_tied_layers_that_need_other_channels_keep_both():
    model = Tied()
    with torch.no_grad():
        model.i.weight[0] = 0
        model.i.bias[0] = 0
    _, record = shrink_and_check(program_of(model, torch.randn(2, 3)))
    assert record.maps == ()


class Embedded(nn.Module):
    """An embedding whose weight is the output layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.mid = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.emb(x) + self.mid(self.emb(x)))


def test_columns_of_a_tied_embedding_go_everywhere():
    model = Embedded()
    with torch.no_grad():
        model.emb.weight[:, :2] = 0
        model.mid.weight[:2] = 0
        model.mid.bias[:2] = 0
    small, record = shrink_and_check(program_of(model, torch.randint(0, 7, (2, 3))))
    assert cuts(record)["emb.weight", 1] == (2, 3, 4, 5)
    assert small.get_submodule("out").weight is small.get_submodule("emb").weight


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_channels_with_odd_numbers_stay(odd: float):
    program = between(nn.ReLU(), dead=slice(0, 3))
    with torch.no_grad():
        program.get_parameter("b.weight")[0, 1] = odd
    small = fxprune.shrink(program)
    record = small.captured.shrinks[-1]
    assert cuts(record)["a.weight", 0] == (1, 3, 4, 5, 6, 7)
    assert any(stay.reason == "a number in it is not finite" for stay in record.stays)


class Always(nn.Module):
    """A dropout that is always on."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


def test_random_numbers_in_eval_mode_keep_their_channels():
    small = fxprune.shrink(between(Always(), dead=slice(0, 3)))
    assert small.captured.shrinks[-1].maps == ()


class Differing(nn.Module):
    """Another constant in train than in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.training:
            h = h + 1
        return self.b(h)


def test_a_constant_that_differs_between_the_graphs_is_not_absorbed():
    model = Differing()
    with torch.no_grad():
        model.a.weight[:3] = 0
    _, record = shrink_and_check(program_of(model, torch.randn(2, 4)))
    assert record.maps == ()
    assert any("other mode" in stay.reason for stay in record.stays)


def test_two_graphs_are_cut_alike_and_absorb_once():
    model = Differing()
    with torch.no_grad():
        model.a.weight[:3] = 0
        model.a.bias[:3] = 0
        model.b.weight[:, :3] = 0
    program = program_of(model, torch.randn(2, 4))
    small, record = shrink_and_check(program)
    assert cuts(record)["a.weight", 0] == (3, 4, 5)
    x = torch.randn(3, 4).double()
    assert torch.allclose(program.train()(x), small.train()(x), rtol=0, atol=1e-12)


def test_another_library_s_operator_of_a_name_of_torch_s_is_not_taken_for_it():
    with torch.library._scoped_library("fxprune_tests", "FRAGMENT") as library:
        library.define("relu(Tensor x) -> Tensor")
        library.impl("relu", lambda x: x.relu().flip(-1), "CompositeExplicitAutograd")
        library.impl("relu", torch.empty_like, "Meta")
        relu: Callable[[Tensor], Tensor] = torch.ops.fxprune_tests.relu.default
        first = nn.Linear(3, 4).requires_grad_(False)
        for parameter in first.parameters():
            parameter[1:3] = 0
        model = nn.Sequential(first, Function(relu), nn.Linear(4, 2))
        _, record = shrink_and_check(program_of(model, torch.randn(2, 3)))
    assert not record.maps
    assert "channels are not followed through fxprune_tests" in record.blocked[0].reason
