"""`--input`: what each part of it means."""

from __future__ import annotations

import pytest
import torch

from fxprune.cli.models import draw_inputs, parse_input
from fxprune.cli.request import CommandError, parse_batch


@pytest.mark.parametrize(
    ("text", "name", "dtype", "shape", "span"),
    [
        ("1,3,32,32", None, torch.float32, (1, 3, 32, 32), (None, None)),
        ("7", None, torch.float32, (7,), (None, None)),
        ("7,", None, torch.float32, (7,), (None, None)),
        ("()", None, torch.float32, (), (None, None)),
        ("0,3", None, torch.float32, (0, 3), (None, None)),
        ("x=bool:2", "x", torch.bool, (2,), (None, None)),
        ("ids=int64:1,24:0..30000", "ids", torch.int64, (1, 24), (0, 30000)),
        ("int8:4:-128..127", None, torch.int8, (4,), (-128, 127)),
        ("2,2:-0.5..1e3", None, torch.float32, (2, 2), (-0.5, 1000.0)),
        ("m=complex64:3", "m", torch.complex64, (3,), (None, None)),
    ],
)
def test_an_option_is_parsed(
    text: str,
    name: str | None,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    span: tuple[float | None, float | None],
) -> None:
    option = parse_input(text)
    assert (option.name, option.dtype, option.shape) == (name, dtype, shape)
    assert (option.low, option.high) == span
    (tensor,) = (*draw_inputs([text])[0], *draw_inputs([text])[1].values())
    assert (tensor.dtype, tensor.shape) == (dtype, shape)


def test_both_ends_of_a_range_are_drawn_and_nothing_beyond() -> None:
    (whole, real, flags, default), _ = draw_inputs(
        ["int64:999:3..5", "999:-2..-1", "bool:999", "int32:999"]
    )
    assert set(whole.tolist()) == {3, 4, 5}
    assert -2 <= real.min() < -1.9
    assert -1.1 < real.max() <= -1
    assert set(flags.tolist()) == {False, True}
    assert set(default.tolist()) == {0, 1}


def test_draws_are_private_and_repeatable() -> None:
    state = torch.get_rng_state()
    first, second = (draw_inputs(["2,3", "x=2,3"]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0][0], second[0][0])
    assert torch.equal(first[1]["x"], second[1]["x"])
    assert not torch.equal(first[0][0], first[1]["x"])


@pytest.mark.parametrize("text", ["9" * 5000, "1,3:0..1e999", "int64:1:0..9" + "9" * 30])
def test_numbers_that_fit_nowhere_are_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--input"):
        draw_inputs([text])


def test_batch_is_a_dimension_or_none() -> None:
    assert (parse_batch("1"), parse_batch("-1"), parse_batch("None")) == (1, -1, None)
    with pytest.raises(CommandError, match=r"--batch 0\.5: give"):
        parse_batch("0.5")
