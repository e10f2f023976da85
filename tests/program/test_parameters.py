"""Parameters of a Program by name: one handle tells what is stored, its mask and its value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import MissingParameterError
from fxprune.program.parameters import parameters_of


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@pytest.fixture(scope="module")
def program() -> fxprune.Program:
    made = fxprune.capture(Tied(), (torch.ones(2, 3),))
    rule = {"select": "a.weight", "method": "l1_unstructured", "amount": 4}
    return fxprune.prune(made, {"rule": [rule]})


def test_any_name_finds_a_parameter_with_its_mask_and_its_value(program: fxprune.Program):
    parameters = parameters_of(program)
    assert list(parameters) == ["a.weight", "a.bias", "b.bias"]
    assert len(parameters) == 3
    for name in ("a.weight", "b.weight"):
        held = parameters[name]
        assert held.aliases == ("a.weight", "b.weight")
        assert held.stored is program.get_parameter("a.weight_orig")
        assert held.mask is program.masks["a.weight"]
        assert torch.equal(held.value, held.stored.detach() * program.masks["a.weight"])
        assert not held.is_spread


def test_a_copy_of_the_mask_is_the_callers_and_of_ones_where_there_is_none(
    program: fxprune.Program,
):
    masked, plain = parameters_of(program)["a.weight"], parameters_of(program)["a.bias"]
    before = program.masks["a.weight"].clone()
    assert torch.equal(masked.copy_mask().zero_(), torch.zeros(3, 3))
    assert torch.equal(program.masks["a.weight"], before)
    assert plain.mask is None
    assert torch.equal(plain.copy_mask(), torch.ones(3))


def test_a_name_that_is_no_parameters_suggests_the_nearest(program: fxprune.Program):
    with pytest.raises(MissingParameterError, match=r"did you mean 'a\.bias'"):
        parameters_of(program)["a.bia"]
