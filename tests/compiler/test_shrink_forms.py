"""Call forms of operators through which channels are followed: each is cut, its values kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.program.program import Program
from tests.models.shrink_steps import Function
from tests.tools.shrink_checks import BOUND, cuts, gap, shrink_and_check

# By name: what stands between two convolutions, and how many channels it gives.
FORMS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "a list as indices": (lambda x: x[:, [7, 0, 5, 5, -2, -7]], 6),
    "a tensor as indices": (lambda x: x[:, torch.tensor([7, 1, 2])], 3),
    "index_select": (lambda x: torch.index_select(x, 1, torch.tensor([4, 2, 0, 7])), 4),
    "index_select, backwards": (lambda x: x.index_select(-3, torch.arange(7, -1, -1)), 8),
    "computed indices": (lambda x: x[:, (torch.arange(8) + 1) % 8], 8),
    "shuffled indices": (lambda x: x[:, torch.arange(8).view(2, 4).t().reshape(-1)], 8),
    "narrow": (lambda x: x.narrow(1, 1, 6), 6),
    "narrow, from the end": (lambda x: torch.narrow(x, -3, -5, 4), 4),
    "tensor_split": (lambda x: torch.cat(torch.tensor_split(x, 3, dim=1)[::-1], 1), 8),
    "tensor_split at": (lambda x: torch.cat(x.tensor_split((3, 6), dim=-3)[1:], 1), 5),
    "hstack": (lambda x: torch.hstack([x, x.relu()]), 16),
    "fliplr": (torch.fliplr, 8),
    "glu over places": (lambda x: F.glu(x, -1), 8),
    "a vector": (lambda x: (x @ torch.ones(6, dtype=x.dtype)).unsqueeze(-1), 8),
    "a step from zeros": (
        lambda x: (h := x.new_zeros(x.shape[0], 8, 6, 6)) + x.tanh() * (1 - h),
        8,
    ),
    "zeros beside": (
        lambda x: torch.cat([x, torch.zeros(x.shape[0], 4, 6, 6, dtype=x.dtype)], 1),
        12,
    ),
    "one place for all": (
        lambda x: x + torch.ones(1, 1, 1, 1, dtype=x.dtype).expand(-1, 8, 6, 6),
        8,
    ),
    "one place again and again": (
        lambda x: x * torch.ones(1, 6, 6, dtype=x.dtype).repeat(8, 1, 1),
        8,
    ),
    "branches that are summed": (lambda x: torch.cat([x, x * 2], 1).view(-1, 2, 8, 6, 6).sum(1), 8),
    "branches by a softmax": (
        lambda x: (
            torch.cat([x, x * 2], 1).view(-1, 2, 8, 6, 6) * x.new_ones(2, 1, 1, 1).softmax(0)
        ).sum(1),
        8,
    ),
    "a norm over channels": (lambda x: x * x.norm(dim=1, keepdim=True), 8),
    "a sum over channels": (lambda x: x / (1 + x.square().sum(1, keepdim=True)), 8),
    "windows in rows": (lambda x: F.fold(F.unfold(x, 3, padding=1) * 2, (6, 6), 3, padding=1), 8),
    "windows": (lambda x: x.unfold(2, 2, 1).mean(-1), 8),
    "computed indices of places": (lambda x: x[:, :, x.argmax(2)[0, 0] % 6], 8),
    "pairs of places": (lambda x: x[:, :, [0, 1, 2], [3, 4, 5]].unsqueeze(-1), 8),
    "gather": (lambda x: x.gather(2, (x > 0).long()), 8),
    "scatter": (lambda x: x.scatter(3, (x > 0).long(), x * 2), 8),
    "bins": (lambda x: x * torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype)), 8),
    "sampled places": (
        lambda x: F.grid_sample(x, torch.zeros_like(x[:, 6:].movedim(1, -1)), align_corners=False),
        8,
    ),
    "a matrix on the left": (lambda x: torch.ones(6, 6, dtype=x.dtype) @ x, 8),
    "a triangle of places": (lambda x: x.tril(), 8),
    "a table": (lambda x: x * torch.tensor([1.0, 0.0] * 4, dtype=x.dtype).view(-1, 1, 1), 8),
}

DEAD = [1, 2, 4, 5, 6]


class Between(nn.Module):
    """Something between two convolutions, of which the first makes dead channels."""

    def __init__(self, between: nn.Module, width: int):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.between, self.b = nn.Conv2d(3, 8, 1), between, nn.Conv2d(width, 5, 1)
        assert self.a.bias is not None
        with torch.no_grad():
            self.a.weight[DEAD] = 0
            self.a.bias[DEAD] = torch.tensor([0, 0, 0.5, 0, 0])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def program_of(model: nn.Module, *args: Tensor) -> Program:
    wide = tuple(x.double() if x.is_floating_point() else x for x in args)
    return fxprune.capture(model.double(), wide).eval()


def between(step: Callable[[Tensor], Tensor] | nn.Module, width: int) -> Program:
    step = step if isinstance(step, nn.Module) else Function(step)
    return program_of(Between(step, width), torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_cut(form: str):
    step, width = FORMS[form]
    _, record = shrink_and_check(between(step, width))
    assert record.blocked == ()
    assert len(cuts(record)["a.weight", 0]) < 8


@pytest.mark.parametrize("equation", ["n c ..., n c ... -> n c ...", "...ij,...jk", "ncij,dcjk"])
def test_equations_are_followed(equation: str):
    def step(x: Tensor) -> Tensor:
        found = torch.einsum(equation, x, x)
        return found if found.dim() == 4 else found.mean(1)

    model = Between(Function(step), 8 if equation != "ncij,dcjk" else 6)
    with torch.no_grad():
        model.b.weight[:, [at for at in DEAD if at < 6]] = 0
    program = fxprune.capture(model.double(), (torch.randn(3, 3, 6, 6).double(),), batch=None)
    _, record = shrink_and_check(program.eval())
    assert record.blocked == ()


def test_a_certificate_holds_where_indices_are_written_anew():
    model = Between(Function(lambda x: x[:, [7, 0, 5, 5, -2]] + x[:, torch.arange(5)]), 5)
    rule = {"select": "*.weight", "method": "identity"}
    recipe = {"rule": [rule], "finalize": {}, "shrink": {}}
    result = fxprune.compile(model.double(), recipe, (torch.randn(2, 3, 6, 6).double(),))
    assert result.certificate.ok
    assert result.program.get_parameter("a.weight").shape[0] < 8
    unread = [n for n in result.program.graph.nodes if not n.users and n.op == "get_attr"]
    assert unread == []


def overwritten(x: Tensor) -> Tensor:
    index = torch.tensor([1, 2, 4])
    index[0] = 3
    return x[:, index]


def test_indices_that_are_written_to_are_not_taken_for_constants():
    program = between(overwritten, 3)
    _, record = shrink_and_check(program)
    assert ("b.weight", 1) not in cuts(record)


class Scaled(nn.Linear):
    """A layer that writes to a copy of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.clone()
        weight[:, 0].fill_(1.0)
        return F.linear(input, weight, self.bias)


def test_a_copy_of_a_weight_that_is_written_to_is_no_weight():
    model = nn.Sequential(nn.Linear(3, 6), Scaled(6, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.zero_()  # pyright: ignore[reportCallIssue, reportOperatorIssue]
    shrink_and_check(program_of(model, torch.randn(2, 3)))


@pytest.mark.parametrize("dead", [slice(0, 5), slice(1, 8)])
def test_a_squeeze_of_all_axes_drops_the_batch_axis_as_before(dead: slice):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), Function(torch.squeeze), nn.Linear(8, 4)
    ).double()
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[dead] = 0
    program = program_of(model, torch.randn(2, 3, 4, 4))
    small, record = shrink_and_check(program)
    assert len(cuts(record)["0.weight", 0]) == max(2, 8 - len(range(8)[dead]))
    assert gap(program, small, batches=(1,)) < BOUND


@pytest.mark.parametrize("groups", [2, 4])
def test_a_transposed_convolution_in_groups_keeps_equal_counts(groups: int):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ConvTranspose2d(8, 12, 3, stride=2, output_padding=1, groups=groups),
        nn.ReLU(),
        nn.Conv2d(12, 2, 1),
    )
    rule = {"select": {"ndim": 4}, "method": "ln_structured", "n": 2, "dim": 0, "amount": 0.5}
    program = program_of(model, torch.randn(2, 3, 5, 5))
    masked = fxprune.prune(program, {"rule": [{**rule, "coupled": True}]})
    small, _ = shrink_and_check(fxprune.finalize(masked))
    shapes = [tuple(small.get_parameter(f"{at}.weight").shape[:2]) for at in (0, 1, 3)]
    outs = 12 // groups - round(0.5 * 12 / groups)
    assert shapes == [(4, 3), (4, outs), (2, outs * groups)]


def test_heads_of_attention_to_another_sequence_go():
    model = nn.TransformerDecoderLayer(16, 4, 12, dropout=0.0, batch_first=True)
    program = program_of(model, torch.randn(2, 5, 16), torch.randn(2, 3, 16))
    rule = {"select": {"ndim": 2}, "method": "ln_structured", "n": 2, "dim": 0, "amount": 0.5}
    masked = fxprune.prune(program, {"rule": [{**rule, "coupled": True}]})
    small, record = shrink_and_check(fxprune.finalize(masked))
    assert record.blocked == ()
    assert small.get_parameter("multihead_attn.in_proj_weight").shape == (24, 16)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_inputs_of_a_cell_go(kind: type[nn.RNNCellBase]):
    cell = kind(8, 5)  # pyright: ignore[reportCallIssue]
    state = Function(lambda x, c: c(x)[0] if isinstance(c, nn.LSTMCell) else c(x), cell)
    first = nn.Linear(3, 8)
    with torch.no_grad():
        first.weight[DEAD], first.bias[DEAD] = 0, 0
    model = nn.Sequential(first, nn.ReLU(), state, nn.Linear(5, 2))
    _, record = shrink_and_check(program_of(model, torch.randn(4, 3)))
    assert len(cuts(record)["0.weight", 0]) == 3


def test_columns_of_a_bag_of_rows_go():
    model = nn.Sequential(nn.EmbeddingBag(9, 6, mode="sum"), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[0].weight[:, 1:4] = 0  # pyright: ignore[reportIndexIssue]
    _, record = shrink_and_check(program_of(model, torch.randint(0, 9, (3, 4))))
    assert cuts(record)["2.weight", 1] == (0, 4, 5)


def test_a_weight_norm_says_what_to_do():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
    _, record = shrink_and_check(between(layer, 8))
    assert any("remove_parametrizations" in each.reason for each in record.blocked)
