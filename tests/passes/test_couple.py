"""couple: units and layers of coupled channels, and where they lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.channels.coupling import Coupling
from fxprune.errors import PassError
from fxprune.program.program import Program
from fxprune.rewrite.registry import create
from fxprune.testing.assert_pass import program_text as text
from tests.conftest import Golden
from tests.models.coupled_nets import captured
from tests.tools.helpers import run, selection


def couple(p: Program, *names: str, optional: bool = False) -> Coupling:
    step = create("couple", rule="r", optional=optional)
    return run(p, step, given=[selection(p, *names)])[0][Coupling]


def told(found: Coupling) -> str:
    """Layers, places and refusals as text."""
    lines = [
        f"{layer.name}: {layer.units} units of widths {layer.widths}, made by {layer.makers}"
        for layer in found.layers
    ]
    lines += [
        f"{place.parameter} dim {place.dim}: {place.units.tolist()} of {place.slice}"
        for place in found.places
    ]
    lines += [f"left {name}: {refusal.reason}" for name, refusal in found.refused]
    return "\n".join(lines) + "\n"


class Gated(nn.Module):
    """Halves that multiply each other: channel i goes with i + 3."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        return self.b(left * right.sigmoid())


def test_layers_and_places(golden: Golden):
    torch.manual_seed(0)
    p = fxprune.capture(Gated(), (torch.randn(4, 2),))
    found = couple(p, "a.weight", "b.weight")
    golden("couple", "gated", text(p) + "\n" + told(found).replace(__file__, "test_couple.py"))


def test_units_lie_wherever_their_channels_do():
    p = captured("residual")
    found = couple(p, *p.aliases)
    stem = [(place.parameter, place.dim) for place in found.places if 0 in place.units]
    assert stem == [
        ("stem.weight", 0),
        ("stem.bias", 0),
        ("conv1.weight", 1),
        ("conv2.weight", 0),
        ("bn2.weight", 0),
        ("bn2.bias", 0),
        ("fc.weight", 1),
    ]
    assert [layer.start for layer in found.layers] == [0, 8]


def test_masked_parameters_are_coupled_like_plain_ones():
    p = captured("attention")
    rule = {"select": "*.weight", "method": "l1_unstructured", "amount": 0.3}
    masked = fxprune.prune(p, {"rule": [rule]})
    plain, other = couple(p, "qkv.weight", "up.weight"), couple(masked, "qkv.weight", "up.weight")
    assert told(plain) == told(other)


def test_what_is_pinned_is_refused_with_its_node():
    found = couple(captured("residual"), "conv1.weight", "fc.weight", "bn2.weight", "stem.weight")
    refused = dict(found.refused)
    assert refused["fc.weight"].reason == "its channels stay: it is an output of the program"
    assert refused["fc.weight"].node is not None
    assert refused["stem.weight"].reason.endswith("those of 'conv2.weight'; select all of them")
    assert refused["bn2.weight"].reason == "it makes no channels of its own"
    assert [layer.name for layer in found.layers] == ["conv1.weight"]


def test_nothing_to_couple_is_an_error_unless_that_is_fine():
    p = captured("residual")
    with pytest.raises(PassError, match=r"rule 'r' selects no channels .*\n  fc.weight: its"):
        couple(p, "fc.weight")
    assert couple(p, "fc.weight", optional=True).layers == ()
    assert couple(p, "fc.weight", optional=True).units == 0


def test_it_edits_nothing():
    p = captured("dense")
    before = text(p)
    couple(p, "a.weight", "b.weight")
    assert text(p) == before
