"""Pruning methods: fxprune's classes on plain tensors, torch's classes, and users' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
import fxprune.functional as prune
from fxprune.errors import DimError, PassError, PassTypeError, ShapeError
from tests.comparing import difference, is_same
from tests.helpers import inputs, model, program, snapshot

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


def masks_for(t: Tensor) -> st.SearchStrategy[Tensor | None]:
    count = t.numel()
    kept = st.lists(st.sampled_from([0.0, 1.0]), min_size=count, max_size=count)
    return st.none() | kept.map(lambda values: torch.tensor(values, dtype=t.dtype).view(t.shape))


def seeded(function: Callable[[], Any]) -> Any:
    torch.manual_seed(7)
    return function()


@given(makers, tensors(), SHARES, st.booleans(), st.data())
def test_prune_on_a_tensor_is_torchs(
    name: str, t: Tensor, amount: float, scored: bool, data: st.DataObject
):
    default_mask = data.draw(masks_for(t))
    scores = t.flip(0) if scored else None
    make = MAKERS[name]
    ours, theirs = (
        seeded(lambda: make(library, amount).prune(t, default_mask, scores))
        for library in (prune, torch_prune)
    )
    assert is_same(ours, theirs)


@given(makers, tensors(), SHARES, st.data())
def test_compute_mask_is_torchs(name: str, t: Tensor, amount: float, data: st.DataObject):
    default_mask = data.draw(masks_for(t).filter(lambda mask: mask is not None))
    kept = default_mask.clone()
    ours, theirs = (
        seeded(lambda: MAKERS[name](library, amount).compute_mask(t, default_mask))
        for library in (prune, torch_prune)
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
    default_mask = data.draw(masks_for(t).filter(lambda mask: mask is not None))
    pair = (lambda library: MAKERS[first](library, 0), lambda library: MAKERS[last](library, amount))
    found: list[Any] = []
    for library in (prune, torch_prune):
        try:
            made = container(library, *pair)
            found.append(seeded(lambda: made.compute_mask(t, default_mask)))
        except ValueError as error:
            found.append(error)
    ours, theirs = found
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


# Torch's own classes


@pytest.mark.parametrize("name", ["L1Unstructured", "RandomUnstructured"])
def test_torchs_classes_stand_for_fxprunes(name: str, monkeypatch: pytest.MonkeyPatch):
    p, q = program("mlp"), program("mlp")
    pairs = ("0.weight", "2.weight", "2.bias")
    theirs = getattr(torch_prune, name)

    def fail(*args: Any) -> Tensor:
        raise AssertionError("torch's code made a mask")

    monkeypatch.setattr(theirs, "compute_mask", fail)
    seeded(lambda: prune.global_unstructured([(p, n) for n in pairs], theirs, amount=0.4))
    own = getattr(prune, name)
    seeded(lambda: prune.global_unstructured([(q, n) for n in pairs], own, amount=0.4))
    assert is_same(dict(p.masks), dict(q.masks))


# Users' own methods: what they see and what is made of their masks


def every_other(t: Tensor, default_mask: Tensor) -> Tensor:
    mask = default_mask.clone()
    mask.view(-1)[::2] = 0
    return mask


def test_a_method_sees_what_torch_shows_it():
    def recorder(library: Any, kind: str, seen: list[Any]) -> Any:
        class Recorder(library.BasePruningMethod):
            PRUNING_TYPE = kind
            dim = 0

            def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
                seen.append((t.detach().clone(), default_mask.clone()))
                mask = default_mask.clone()
                mask[:1] = 0
                return mask

        return Recorder

    for kind in ("unstructured", "structured", "global"):
        p, source = program("linear"), model("linear")
        ours: list[Any] = []
        theirs: list[Any] = []
        scores = torch.arange(6.0).view(2, 3)
        for given_scores in (None, scores, None):
            keywords = {} if given_scores is None else {"importance_scores": given_scores}
            recorder(prune, kind, ours).apply(p, "weight", **keywords)
            recorder(torch_prune, kind, theirs).apply(source, "weight", **keywords)
        assert is_same(ours, theirs)
        assert difference(dict(p.state_dict()), dict(source.state_dict())) is None


def test_local_classes_and_subclasses_of_the_built_in_ones_are_taken():
    class Halves(prune.BasePruningMethod):
        def __init__(self, start: int) -> None:
            self.start = start

        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            mask = default_mask.clone()
            mask.view(-1)[self.start :: 2] = 0
            return mask

    class Loud(prune.L1Unstructured):
        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            return every_other(t, default_mask)

    class Quiet(prune.L1Unstructured):
        def __init__(self) -> None:
            super().__init__(amount=2)

    p = program("linear")
    Halves.apply(p, "bias", start=1)
    Loud.apply(p, "weight", 0.5)
    assert p.masks["bias"].tolist() == [1, 0]
    assert p.masks["weight"].tolist() == [[0, 1, 0], [1, 0, 1]]
    q = program("linear")
    Quiet.apply(q, "weight")
    prune.l1_unstructured(p := program("linear"), "weight", 2)
    assert is_same(dict(q.masks), dict(p.masks))


@pytest.mark.parametrize("base", [prune.BasePruningMethod, torch_prune.BasePruningMethod])
def test_own_methods_rank_globally(base: Any):
    class Own(base):
        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            return every_other(t, default_mask)

    p, source = program("mlp"), model("mlp")
    pairs = [(source.get_submodule("0"), "weight"), (source.get_submodule("2"), "bias")]
    for _ in range(2):
        prune.global_unstructured([(p, "0.weight"), (p, "2.bias")], Own)
        torch_prune.global_unstructured(pairs, torch_own)
    assert is_same(p.masks["0.weight"], pairs[0][0].weight_mask)
    assert is_same(p.masks["2.bias"], pairs[1][0].bias_mask)


class torch_own(torch_prune.BasePruningMethod):  # noqa: N801 - it stands for Own
    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        return every_other(t, default_mask)


def test_a_subclass_of_torchs_class_is_the_users_own():
    class Own(torch_prune.L1Unstructured):
        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            return every_other(t, default_mask)

    p = program("linear")
    prune.global_unstructured([(p, "weight")], Own, amount=0.5)
    assert p.masks["weight"].tolist() == [[0, 1, 0], [1, 0, 1]]


def test_a_masked_program_computes_with_an_own_mask():
    class Own(prune.BasePruningMethod):
        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            return every_other(t, default_mask)

    p, source = program("linear"), model("linear")
    Own.apply(p, "weight")
    torch_own.apply(source, "weight")
    assert is_same(p(*inputs("linear")), source(*inputs("linear")))
    assert [record.method.rpartition(":")[2] for record in p.records] == ["Own"]


# What is wrong with a method is said, and nothing changes


class Wrong(prune.BasePruningMethod):
    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
        return default_mask


def wrong(**attributes: Any) -> Any:
    return type("Own", (Wrong,), attributes)


def raises(self: Any, t: Tensor, default_mask: Tensor) -> Tensor:
    raise ZeroDivisionError("a bug of the user's")


WRONG: list[tuple[Any, type[Exception], str]] = [
    (wrong(PRUNING_TYPE="blocks"), PassTypeError, r"Own.PRUNING_TYPE is 'blocks'; it must be"),
    (wrong(PRUNING_TYPE="structured"), PassTypeError, "Own is structured, but has no attribute dim"),
    (wrong(PRUNING_TYPE="structured", dim=2), DimError, "dim=2 does not exist in a tensor of"),
    (wrong(compute_mask=lambda self, t, default_mask: None), PassTypeError, "Own.compute_mask gave NoneType"),
    (
        wrong(compute_mask=lambda self, t, default_mask: torch.ones(2)),
        ShapeError,
        r"Own.compute_mask gave a mask of shape \(2,\) for \(",
    ),
    (wrong(compute_mask=raises), ZeroDivisionError, "a bug of the user's"),
]


@pytest.mark.parametrize(("method", "error", "message"), WRONG)
def test_a_faulty_method_changes_nothing(method: Any, error: type[Exception], message: str):
    p = prune.identity(program("linear"), "weight")
    before = snapshot(p)
    with pytest.raises(error, match=message):
        method.apply(p, "weight")
    assert snapshot(p) == before


@pytest.mark.parametrize("kind", ["structured", "global"])
def test_only_unstructured_methods_rank_globally(kind: str):
    p = program("mlp")
    with pytest.raises(PassTypeError, match=rf"'unstructured'; Own is {kind!r}"):
        prune.global_unstructured([(p, "0.weight")], wrong(PRUNING_TYPE=kind))
    assert not fxprune.is_pruned(p)
