"""batch=: which dimensions are dynamic, how the example is doubled, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import CaptureError, FxpruneError, InputError
from fxprune.program.program import Program
from tests.tools.capture_helpers import check_same, net


def rows_and_columns(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """The batch is dimension 0 of `x` and dimension 1 of `y`."""
    return self.l(x) + y.T


def nested(self: Any, b: dict[str, Any]) -> Tensor:
    return self.l(b["x"]) + b["y"][0].T


def added_pair(self: Any, x: Tensor, y: Tensor) -> Tensor:
    return self.l(x) + y


def made(forward: Any) -> nn.Module:
    torch.manual_seed(0)
    return net(forward, l=nn.Linear(3, 2), m=nn.Linear(3, 2))


def shapes(program: Program) -> list[tuple[int | str, ...]]:
    return [i.shape for i in program.inputs.inputs]


def captured_shapes(forward: Any, *example: Any, **options: Any) -> list[tuple[int | str, ...]]:
    return shapes(fxprune.capture(made(forward), example, **options))


# What may be given


def test_the_default_is_dimension_zero_of_every_input() -> None:
    found = captured_shapes(added_pair, torch.randn(4, 3), torch.randn(4, 2))
    assert found == [("batch", 3), ("batch", 2)]


def test_a_negative_dimension_counts_from_the_end() -> None:
    model = net(lambda self, x: self.l(x.T).T, l=nn.Linear(3, 2))
    program = fxprune.capture(model, (torch.randn(3, 4),), batch=-1)
    assert shapes(program) == [(3, "batch")]
    x = torch.randn(3, 7)
    check_same(program(x), model(x))


def test_none_fixes_every_shape() -> None:
    program = fxprune.capture(nn.Linear(3, 2), (torch.randn(4, 3),), batch=None)
    assert shapes(program) == [(4, 3)]
    with pytest.raises(InputError, match=r"input: float32\[4, 3\].*\(5, 3\).*batch="):
        program(torch.randn(5, 3))


@pytest.mark.parametrize("batch", [{"x": 0, "y": 1}, {"y": 1, "x": 0}, (0, 1), [0, -1]])
def test_a_dimension_for_each_argument(batch: Any) -> None:
    model = made(rows_and_columns)
    program = fxprune.capture(model, (torch.randn(4, 3), torch.randn(2, 4)), batch=batch)
    assert shapes(program) == [("batch", 3), (2, "batch")]
    for rows in (1, 7):
        x, y = torch.randn(rows, 3), torch.randn(2, rows)
        check_same(program(x, y), model(x, y), rows)


def test_arguments_that_are_not_named_are_fixed() -> None:
    x, y = torch.randn(4, 3), torch.randn(2)
    assert captured_shapes(added_pair, x, y, batch={"x": 0}) == [("batch", 3), (2,)]
    assert captured_shapes(added_pair, x, y, batch=(0,)) == [("batch", 3), (2,)]
    assert captured_shapes(added_pair, x, y, batch={"x": 0, "y": None}) == [("batch", 3), (2,)]


def test_keyword_arguments_are_named_too() -> None:
    args, kwargs = (torch.randn(4, 3),), {"y": torch.randn(2, 4)}
    program = fxprune.capture(made(rows_and_columns), args, kwargs, batch={"x": 0, "y": 1})
    assert shapes(program) == [("batch", 3), (2, "batch")]


def test_dimensions_nest_as_the_arguments_do() -> None:
    model, example = made(nested), {"x": torch.randn(4, 3), "y": [torch.randn(2, 4)]}
    program = fxprune.capture(model, (example,), batch={"b": {"x": 0, "y": [1]}})
    assert shapes(program) == [("batch", 3), (2, "batch")]
    given = {"x": torch.randn(7, 3), "y": [torch.randn(2, 7)]}
    check_same(program(given), model(given))


def test_a_none_inside_fixes_that_input() -> None:
    model = net(lambda self, b: self.l(b["x"]) + b["y"][0], l=nn.Linear(3, 2))
    example = {"x": torch.randn(4, 3), "y": [torch.randn(2)]}
    program = fxprune.capture(model, (example,), batch={"b": {"x": 0, "y": [None]}})
    assert shapes(program) == [("batch", 3), (2,)]


def test_two_inputs_may_have_batches_of_their_own() -> None:
    model = net(lambda self, x, y: self.l(x).sum(0) + self.l(y).sum(0), l=nn.Linear(3, 2))
    example = (torch.randn(4, 3), torch.randn(6, 3))
    program = fxprune.capture(model, example, batch={"x": 0, "y": 0})
    given = (torch.randn(2, 3), torch.randn(7, 3))
    check_same(program(*given), model(*given))


def test_no_tensor_needs_no_batch() -> None:
    model = net(lambda self: self.l(torch.ones(2, 3)), l=nn.Linear(3, 2))
    check_same(fxprune.capture(model)(), model())
    scaled = net(lambda self, x, s: self.l(x) * s, l=nn.Linear(3, 2))
    program = fxprune.capture(scaled, (torch.randn(4, 3), torch.tensor(2.0)))
    assert shapes(program) == [("batch", 3), ()]


# A batch of one


def test_a_batch_of_one_is_doubled_where_inputs_share_it() -> None:
    model = net(lambda self, x, y, z: self.l(x) + y + z, l=nn.Linear(3, 2))
    program = fxprune.capture(model, (torch.randn(1, 3), torch.randn(1, 2), torch.randn(2)))
    assert shapes(program) == [("batch", 3), ("batch", 2), (2,)]
    for rows in (1, 4):
        given = (torch.randn(rows, 3), torch.randn(rows, 2), torch.randn(2))
        check_same(program(*given), model(*given), rows)


def test_a_one_that_broadcasts_over_a_larger_batch_stays_a_one() -> None:
    model = made(added_pair)
    program = fxprune.capture(model, (torch.randn(4, 3), torch.randn(1, 2)))
    assert shapes(program) == [("batch", 3), (1, 2)]
    given = (torch.randn(7, 3), torch.randn(1, 2))
    check_same(program(*given), model(*given))


def test_a_recurrent_state_with_a_batch_of_one() -> None:
    model = nn.LSTM(3, 2, batch_first=True)
    example = (torch.randn(1, 5, 3), (torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)))
    program = fxprune.capture(model, example, batch=(0, 1))
    assert shapes(program) == [("batch", 5, 3), (1, "batch", 2), (1, "batch", 2)]
    given = (torch.randn(4, 5, 3), (torch.randn(1, 4, 2), torch.randn(1, 4, 2)))
    check_same(program(*given), model(*given))
    with pytest.raises(InputError, match=r"hx\[0\]"):
        program(given[0], (torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)))


# What is refused


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"z": 0}, r"batch= names 'z'.*\['x', 'y'\]"),
        (5, r"batch=5: no input has that dimension"),
        ({"x": 5}, r"batch=5: input 'x' has no such dimension"),
        ({"x": -3}, r"batch=-3: input 'x' has no such dimension"),
        ((0, 0, 0), r"batch=\(0, 0, 0\): give an int, None, or a dimension for each argument"),
        ("x", r"batch='x': give an int"),
        (True, r"batch=True: give an int"),
        ({"x": True}, r"batch= for 'x' is True|batch=True"),
        ({"x": [0, 0]}, r"batch= for 'x' is \[0, 0\]"),
        ({"x": "rows"}, r"batch= for 'x' is 'rows'"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        captured_shapes(added_pair, torch.randn(4, 3), torch.randn(4, 2), batch=batch)


@pytest.mark.parametrize("batch", [{"b": [0]}, {"b": {"x": 0}}, {"b": {"p": 0, "q": [1]}}])
def test_a_nest_that_does_not_fit_is_refused(batch: Any) -> None:
    example = {"x": torch.randn(4, 3), "y": [torch.randn(2, 4)]}
    with pytest.raises(CaptureError, match="batch= for 'b'"):
        captured_shapes(nested, example, batch=batch)


def test_an_empty_example_is_refused() -> None:
    with pytest.raises(CaptureError, match="batch=0: the example 'input' is empty"):
        fxprune.capture(nn.Linear(3, 2), (torch.randn(0, 3),))
    assert shapes(fxprune.capture(nn.Linear(3, 2), (torch.randn(0, 3),), batch=None)) == [(0, 3)]


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.l(x).view(4, 2, 1),
        lambda self, x: self.l(x).sum(1) + torch.ones(4),
        lambda self, x: self.l(x).reshape(8).view(2, 4),
    ],
    ids=["view", "ones", "reshape"],
)
def test_a_batch_that_becomes_a_constant_is_refused(forward: Any) -> None:
    with pytest.raises(CaptureError, match="batch=0: dimension 0 of input 'x'"):
        captured_shapes(forward, torch.randn(4, 3))


def test_inputs_of_another_size_than_the_batch_are_not_fixed_in_silence() -> None:
    example = (torch.randn(5, 2), torch.randn(4, 3))
    model = net(lambda self, m, x: self.l(x) + m.sum(0), l=nn.Linear(3, 2))
    try:
        program = fxprune.capture(model, example)
    except CaptureError as error:
        assert "batch=" in str(error)  # noqa: PT017 - either will do
        return
    given = (example[0], torch.randn(7, 3))
    check_same(program(*given), model(*given))


def by_parity(self: Any, x: Tensor) -> Tensor:
    return self.l(x) if x.shape[0] % 2 == 0 else self.l(x) * 2


def by_size(self: Any, x: Tensor) -> Tensor:
    return self.l(x) if x.shape[0] > 3 else self.l(x) * 2


def by_one(self: Any, x: Tensor) -> Tensor:
    """torch.export takes sizes from 2 on for alike, and notes no condition."""
    return self.l(x) if x.shape[0] > 1 else self.l(x) * 2


def by_layer(self: Any, x: Tensor) -> Tensor:
    """Both ways call the same operators with the same shapes: only the parameters tell."""
    return self.l(x) if x.shape[0] > 1 else self.m(x)


def by_order(self: Any, x: Tensor) -> Tensor:
    """Both ways return the same sizes and call the same operators, one on another's result."""
    y = self.l(x)
    return (y + 1).exp() if x.shape[0] > 1 else y.exp() + 1


def by_last(self: Any, x: Tensor) -> Tensor:
    """Both ways make the same calls and return another of the results."""
    ways = self.l(x), self.m(x)
    return ways[0] if x.shape[0] > 1 else ways[1]


def asking(self: Any, x: Tensor) -> Tensor:
    """One row asks for a value, which the operators alone can not give."""
    return self.l(x) * x.shape[0] if x.shape[0] > 1 else self.l(x) * float(x.sum() > 1e9)


@pytest.mark.parametrize(
    "forward", [by_parity, by_size, by_one, by_layer, by_order, by_last, asking]
)
def test_a_branch_on_the_batch_is_never_taken_for_another(forward: Any) -> None:
    """Either capture refuses, or a call that would take the other branch is refused."""
    model = made(forward)
    try:
        program = fxprune.capture(model, (torch.randn(4, 3),))
    except CaptureError as error:
        assert "batch" in str(error)  # noqa: PT017 - either will do
        return
    for rows in range(1, 8):
        x = torch.randn(rows, 3)
        try:
            out = program(x)
        except FxpruneError:
            continue
        check_same(out, model(x), rows)


def normed(self: Any, x: Tensor) -> Tensor:
    y = self.l(x)
    return F.batch_norm(y, self.mean, self.var, training=True)


def counted(self: Any, x: Tensor) -> Tensor:
    self.mean.add_(1)
    return self.l(x) + self.mean


@pytest.mark.parametrize("forward", [normed, counted])
def test_the_check_of_a_batch_of_one_writes_to_no_buffer(forward: Any) -> None:
    model = made(forward)
    model.register_buffer("mean", torch.zeros(2))
    model.register_buffer("var", torch.ones(2))
    program = fxprune.capture(model, (torch.randn(4, 3),))
    assert torch.equal(program.mean, torch.zeros(2))
    assert torch.equal(program.var, torch.ones(2))
