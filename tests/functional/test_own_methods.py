"""Classes that others bring: torch's own, and users' methods, local ones too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor

import fxprune
from fxprune import functional as prune
from fxprune.errors import DimError, PassTypeError, ShapeError
from fxprune.testing.assert_pass import snapshot
from fxprune.testing.comparing import difference, is_same
from tests.tools.helpers import inputs, model, program


def seeded(function: Callable[[], Any]) -> Any:
    torch.manual_seed(7)
    return function()


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

            def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
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

        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
            mask = default_mask.clone()
            mask.view(-1)[self.start :: 2] = 0
            return mask

    class Loud(prune.L1Unstructured):
        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
            return every_other(t, default_mask)

    class Renamed(prune.L1Unstructured):
        pass

    p = program("linear")
    Halves.apply(p, "bias", start=1)
    Loud.apply(p, "weight", 0.5)
    assert p.masks["bias"].tolist() == [1, 0]
    assert p.masks["weight"].tolist() == [[0, 1, 0], [1, 0, 1]]
    q = program("linear")
    Renamed.apply(q, "weight", 2)
    prune.l1_unstructured(p := program("linear"), "weight", 2)
    assert is_same(dict(q.masks), dict(p.masks))


@pytest.mark.parametrize("base", [prune.BasePruningMethod, torch_prune.BasePruningMethod])
def test_own_methods_rank_globally(base: Any):
    class Own(base):
        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
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

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
        return every_other(t, default_mask)


def test_a_subclass_of_torchs_class_is_the_users_own():
    class Own(torch_prune.L1Unstructured):
        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
            return every_other(t, default_mask)

    p = program("linear")
    prune.global_unstructured([(p, "weight")], Own, amount=0.5)
    assert p.masks["weight"].tolist() == [[0, 1, 0], [1, 0, 1]]


def test_a_masked_program_computes_with_an_own_mask():
    class Own(prune.BasePruningMethod):
        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
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
    (
        wrong(PRUNING_TYPE="structured"),
        PassTypeError,
        "Own is structured, but has no attribute dim",
    ),
    (wrong(PRUNING_TYPE="structured", dim=2), DimError, "dim=2 does not exist in a tensor of"),
    (
        wrong(compute_mask=lambda self, t, default_mask: None),
        PassTypeError,
        "Own.compute_mask gave NoneType",
    ),
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
