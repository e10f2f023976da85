"""The checker: what a Program must hold, and what a step promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import functional as prune
from fxprune.errors import InvariantError
from fxprune.program.program import Program
from fxprune.testing.assert_pass import snapshot
from fxprune.testing.comparing import is_same
from fxprune.verification.invariants import check_invariants, check_same, observe
from tests.tools.helpers import inputs, model, program

# Invariants


def masked(name: str, parameter: str) -> Program:
    return prune.l1_unstructured(program(name), parameter, 0.5)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("mlp", "0.weight"), ("conv", "1.bias"), ("tied", "out.weight"), ("modes", "aux.weight")],
)
def test_a_sound_program_passes(name: str, parameter: str):
    check_invariants(program(name), "test")
    p = masked(name, parameter)
    before = snapshot(p)
    check_invariants(p, "test")
    assert snapshot(p) == before


def node(p: Program, name: str) -> Any:
    return next(n for graph in p.graphs.values() for n in graph.nodes if n.name == name)


def mask_one_alias(p: Program) -> None:
    emb, mask = p.get_submodule("emb"), torch.ones(4, 3)
    emb._parameters["weight_orig"] = emb._parameters.pop("weight")
    emb._buffers["weight_mask"] = mask


def give_aliases_two_masks(p: Program) -> None:
    prune.identity(p, "emb.weight")
    p.get_submodule("out")._buffers["weight_mask"] = torch.ones(4, 3)


def give_aliases_two_parameters(p: Program) -> None:
    p.get_submodule("out")._parameters["weight"] = nn.Parameter(torch.ones(4, 3))


def give_another_shape(p: Program) -> None:
    prune.identity(p, "emb.weight")
    for path in ("emb", "out"):
        p.get_submodule(path)._buffers["weight_mask"] = mask = torch.ones(3)
    p.get_submodule("emb")._buffers["weight_mask"] = mask


def mask_again(p: Program) -> None:
    prune.identity(p, "emb.weight")
    product = node(p, "mul_tensor")
    with p.graph.inserting_after(product):
        again = p.graph.call_function(product.target, product.args)
    node(p, "linear").args = (node(p, "embedding"), again)


def read_past_the_mask(p: Program) -> None:
    prune.identity(p, "emb.weight")
    node(p, "linear").args = (node(p, "embedding"), node(p, "emb_weight"))


def read_another_name(p: Program) -> None:
    node(p, "emb_weight").target = "out.weight"


BROKEN: list[tuple[Callable[[Program], None], str]] = [
    (mask_one_alias, r"the aliases \('emb.weight', 'out.weight'\) have no longer one tensor"),
    (give_aliases_two_masks, r"the aliases .* have no longer one tensor and mask"),
    (give_aliases_two_parameters, r"the aliases .* have no longer one tensor and mask"),
    (
        give_another_shape,
        r"the mask of 'emb.weight' is \(3,\) torch.float32, the parameter \(4, 3\) torch.float32",
    ),
    (mask_again, r"'emb.weight' is masked twice in the both graph"),
    (read_past_the_mask, r"node emb_weight reads 'emb.weight' past its mask"),
    (read_another_name, r"node emb_weight reads 'out.weight', not 'emb.weight'"),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[d.__name__ for d, _ in BROKEN])
def test_what_is_broken_is_named(damage: Callable[[Program], None], message: str):
    p = program("tied")
    damage(p)
    with pytest.raises(InvariantError, match=f"^some-pass: {message}"):
        check_invariants(p, "some-pass")


def test_every_graph_is_checked():
    p = program("modes")
    read = next(n for n in p.graphs["train"].nodes if n.target == "aux.weight")
    read.target = "aux.weight_orig"
    with pytest.raises(InvariantError, match=r"reads 'aux.weight_orig', not 'aux.weight'"):
        check_invariants(p, "test")


def test_a_mask_of_another_dtype_is_broken():
    p = masked("mlp", "0.weight")
    mask = p.masks["0.weight"]
    p.get_submodule("0")._buffers["weight_mask"] = mask.double()
    with pytest.raises(InvariantError, match=r"is \(4, 3\) torch.float64, the parameter \(4, 3\)"):
        check_invariants(p, "test")


# Promises


class Noisy(nn.Module):
    """Has everything that a forward may change: statistics, flags and the generator."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        return {"y": self.drop(self.norm(x)) + torch.rand(3), "scale": scale, "none": None}


def test_observing_changes_nothing():
    noisy = Noisy().train()
    noisy.drop.eval()
    flags = [part.training for part in noisy.modules()]
    state = {k: v.clone() for k, v in noisy.state_dict().items()}
    generator = torch.get_rng_state()
    first = observe(noisy, (torch.ones(4, 3),), {"scale": 0.5})
    second = observe(noisy, (torch.ones(4, 3),), {"scale": 0.5})
    assert is_same(first, second)
    assert first[1:] == [0.5, None]
    assert not first[0].requires_grad
    assert [part.training for part in noisy.modules()] == flags
    assert is_same(dict(noisy.state_dict()), state)
    assert torch.equal(torch.get_rng_state(), generator)


def test_flags_come_back_after_an_error_too():
    noisy = Noisy().train()
    with pytest.raises(RuntimeError):
        observe(noisy, (torch.ones(4, 5),), {})
    assert all(part.training for part in noisy.modules())


def test_a_program_and_its_source_are_observed_alike():
    source = model("conv").train()
    seen = observe(program("conv").train(), inputs("conv"), {})
    check_same(observe(source, inputs("conv"), {}), seen, "test")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([torch.zeros(2), torch.zeros(1)], [torch.zeros(2), -torch.zeros(1)]),
        ([1, torch.ones(2)], [1, torch.ones(2).double()]),
        ([None, "a"], [None, "b"]),
        ([torch.ones(2), torch.ones(1)], [torch.ones(2), torch.ones(())]),
        ([torch.ones(2), torch.ones(1)], [torch.ones(2), None]),
        ([torch.ones(2), 1], [torch.ones(2), 1.0]),
    ],
)
def test_a_difference_breaks_the_promise(before: list[Any], after: list[Any]):
    with pytest.raises(InvariantError) as caught:
        check_same(before, after, "finalize")
    assert str(caught.value) == (
        "finalize promised equal outputs, but output 1 differs; nothing was changed"
    )


def test_another_number_of_outputs_breaks_the_promise():
    with pytest.raises(InvariantError, match="finalize changed the number of outputs"):
        check_same([torch.ones(2)], [], "finalize")


def test_equal_outputs_keep_the_promise():
    values = torch.tensor([float("nan"), -0.0])
    check_same([values, 3, None], [values.clone(), 3, None], "finalize")
