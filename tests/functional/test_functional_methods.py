"""fxprune's method classes where there is no Program: on plain tensors, and in containers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune import functional as prune
from fxprune.errors import PassError, PassTypeError
from fxprune.testing.comparing import is_same
from tests.tools.helpers import program

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

# On plain tensors


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A tensor of one to three dimensions with many equal magnitudes."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    count = int(torch.Size(sizes).numel())
    levels = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -2.0, 3.0, float("inf")])
    values = draw(st.lists(levels, min_size=count, max_size=count))
    return torch.tensor(values, dtype=draw(st.sampled_from(DTYPES))).view(sizes)


SHARES = st.sampled_from([0, 1, 0.0, 0.3, 0.5, 1.0])
MAKERS: dict[str, Callable[[Any, Any], Any]] = {
    "Identity": lambda library, amount: library.Identity(),
    "L1Unstructured": lambda library, amount: library.L1Unstructured(amount),
    "RandomUnstructured": lambda library, amount: library.RandomUnstructured(amount),
    "LnStructured": lambda library, amount: library.LnStructured(amount, 2, 0),
    "LnStructured along 1": lambda library, amount: library.LnStructured(amount, 1, dim=-1),
    "RandomStructured": lambda library, amount: library.RandomStructured(amount, 1),
}
makers = st.sampled_from(list(MAKERS))


def masks_for(t: Tensor) -> st.SearchStrategy[Tensor]:
    count = t.numel()
    kept = st.lists(st.sampled_from([0.0, 1.0]), min_size=count, max_size=count)
    return kept.map(lambda values: torch.tensor(values, dtype=t.dtype).view(t.shape))


def of_both(function: Callable[[Any], Any]) -> list[Any]:
    """What a function gives, or the ValueError it raises, with fxprune and with torch."""
    found: list[Any] = []
    for library in (prune, torch_prune):
        torch.manual_seed(7)
        try:
            found.append(function(library))
        except ValueError as error:
            found.append(error)
    return found


@given(makers, tensors(), SHARES, st.booleans(), st.data())
def test_prune_on_a_tensor_is_torchs(
    name: str, t: Tensor, amount: float, scored: bool, data: st.DataObject
):
    default_mask = data.draw(st.none() | masks_for(t))
    scores = t.flip(0) if scored else None
    ours, theirs = of_both(
        lambda library: MAKERS[name](library, amount).prune(t, default_mask, scores)
    )
    assert is_same(ours, theirs)


@given(makers, tensors(), SHARES, st.data())
def test_compute_mask_is_torchs(name: str, t: Tensor, amount: float, data: st.DataObject):
    default_mask = data.draw(masks_for(t))
    kept = default_mask.clone()
    ours, theirs = of_both(
        lambda library: MAKERS[name](library, amount).compute_mask(t, default_mask)
    )
    assert is_same(ours, theirs)
    assert is_same(default_mask, kept)


def test_a_given_mask_is_joined_on_a_tensor_too():
    t, mask = torch.randn(2, 3), torch.tensor([[1.0, 0.0, 1.0], [0.5, 1.0, 0.0]])
    default_mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    ours = prune.CustomFromMask(mask).prune(t, default_mask)
    assert is_same(ours, torch_prune.CustomFromMask(mask).prune(t, default_mask))


# Containers


def container(library: Any, *makers: Callable[[Any], Any]) -> Any:
    methods = [make(library) for make in makers]
    for method in methods:
        method._tensor_name = "weight"
    found = library.PruningContainer(methods[0])
    for method in methods[1:]:
        found.add_pruning_method(method)
    return found


@given(tensors(), makers, makers, SHARES, st.data())
def test_the_last_method_of_a_container_prunes_what_is_alive(
    t: Tensor, first: str, last: str, amount: float, data: st.DataObject
):
    default_mask = data.draw(masks_for(t))
    makers = (
        lambda library: MAKERS[first](library, 0),
        lambda library: MAKERS[last](library, amount),
    )
    ours, theirs = of_both(
        lambda library: container(library, *makers).compute_mask(t, default_mask)
    )
    assert isinstance(ours, ValueError) == isinstance(theirs, ValueError)
    if isinstance(ours, Tensor):
        assert is_same(ours, theirs)


def test_a_container_is_a_sequence_of_methods():
    made = container(
        prune,
        lambda library: library.L1Unstructured(0.5),
        lambda library: torch_prune.Identity(),
    )
    assert len(made) == 2
    assert [type(method) for method in made] == [prune.L1Unstructured, torch_prune.Identity]
    assert made[1] is list(made)[1]
    assert made._tensor_name == "weight"


def test_a_container_takes_methods_for_one_parameter():
    made = container(prune, lambda library: library.L1Unstructured(0.5))
    other = prune.Identity()
    other._tensor_name = "bias"
    with pytest.raises(PassError, match="this container is for 'weight', the method for 'bias'"):
        made.add_pruning_method(other)
    wrong: Any = nn.Identity()
    with pytest.raises(PassTypeError, match="Identity is no subclass of BasePruningMethod"):
        made.add_pruning_method(wrong)
    assert len(made) == 1


# Methods that were applied


def test_an_applied_method_masks_with_gradient_and_is_removed():
    p = program("linear")
    method = prune.L1Unstructured.apply(p, "weight", 2)
    masked = method.apply_mask(p)
    assert masked.requires_grad
    assert is_same(masked.detach(), p.value("weight"))
    method.remove(p)
    assert not p.masks
    assert is_same(p.parameter("weight").detach(), masked.detach())


def test_a_container_is_applied_method_by_method():
    with pytest.raises(PassError, match="apply these one by one"):
        prune.PruningContainer.apply(program("linear"), "weight")
