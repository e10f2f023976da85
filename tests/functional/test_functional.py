"""fxprune.functional beside torch.nn.utils.prune: names, signatures, and what is no Program."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import nn

import fxprune
from fxprune import functional as prune
from fxprune.errors import MissingParameterError, NotPrunedError, PassTypeError
from fxprune.testing.assert_pass import snapshot
from fxprune.testing.comparing import difference
from tests.tools.helpers import model, program

# Names and signatures


def public(module: Any) -> dict[str, Any]:
    """What a module defines, and not what it imports."""
    return {
        name: found
        for name, found in vars(module).items()
        if not name.startswith("_") and getattr(found, "__module__", "") == module.__name__
    }


TORCHS = public(torch_prune)
FUNCTIONS = [name for name, found in TORCHS.items() if inspect.isfunction(found)]
CLASSES = [name for name, found in TORCHS.items() if inspect.isclass(found)]


def test_every_public_name_of_torch_is_there_and_no_other():
    assert sorted(prune.__all__) == sorted(TORCHS)
    assert set(FUNCTIONS) | set(CLASSES) == set(TORCHS)


def shape(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults of a function's parameters."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_torchs_signatures(name: str):
    assert shape(getattr(prune, name)) == shape(TORCHS[name])


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_made_as_torchs_and_are_of_torchs_kind(name: str):
    ours = getattr(prune, name)
    assert shape(ours) == shape(TORCHS[name])
    assert issubclass(ours, torch_prune.BasePruningMethod)
    kind = getattr(TORCHS[name], "PRUNING_TYPE", "unstructured")
    assert getattr(ours, "PRUNING_TYPE", None) == kind


@pytest.mark.parametrize("name", CLASSES)
def test_methods_take_torchs_arguments(name: str):
    for method in ("compute_mask", "prune", "apply_mask", "remove", "add_pruning_method"):
        if hasattr(TORCHS[name], method):
            ours = [part[0] for part in shape(getattr(getattr(prune, name), method))]
            assert ours == [part[0] for part in shape(getattr(TORCHS[name], method))]


SCORES = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
MASK = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
APPLIED: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Identity", (), {}),
    ("RandomUnstructured", (2,), {}),
    ("RandomUnstructured", (), {"amount": 0.5}),
    ("L1Unstructured", (0.5,), {}),
    ("L1Unstructured", (2,), {"importance_scores": SCORES}),
    ("L1Unstructured", (2, SCORES), {}),
    ("RandomStructured", (1,), {}),
    ("RandomStructured", (1, 0), {}),
    ("LnStructured", (1, 2, 0), {}),
    ("LnStructured", (1,), {"n": 1, "dim": 1, "importance_scores": SCORES}),
    ("LnStructured", (1, 1, 1, SCORES), {}),
    ("CustomFromMask", (MASK,), {}),
    ("CustomFromMask", (), {"mask": MASK}),
]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("name", "args", "kwargs"), APPLIED, ids=[f"{n}-{len(a)}-{len(k)}" for n, a, k in APPLIED]
)
def test_classes_are_applied_as_torchs(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]):
    p, source = program("linear"), model("linear")
    torch.manual_seed(1)
    ours = getattr(prune, name).apply(p, "weight", *args, **kwargs)
    torch.manual_seed(1)
    TORCHS[name].apply(source, "weight", *args, **kwargs)
    assert difference(dict(p.state_dict()), dict(source.state_dict())) is None
    assert type(ours) is getattr(prune, name)
    assert ours._tensor_name == "weight"


def test_each_function_returns_what_torchs_does():
    p = program("linear")
    asked: list[Any] = [
        prune.identity(p, "weight"),
        prune.random_unstructured(p, "weight", 1),
        prune.l1_unstructured(p, "weight", 1),
        prune.random_structured(p, "weight", 0, 0),
        prune.ln_structured(p, "weight", 0, 2, 0),
        prune.custom_from_mask(p, "weight", MASK),
        prune.remove(p, "weight"),
    ]
    assert all(found is p for found in asked)
    assert prune.global_unstructured([(p, "weight")], prune.L1Unstructured, amount=1) is None


# Refusals, beside those in tests/functional/parity/test_refusals.py

Ask = Callable[[Any], Any]
ASKED: dict[str, Ask] = {
    "identity": lambda m: prune.identity(m, "weight"),
    "random_unstructured": lambda m: prune.random_unstructured(m, "weight", 1),
    "l1_unstructured": lambda m: prune.l1_unstructured(m, "weight", 1),
    "random_structured": lambda m: prune.random_structured(m, "weight", 1, 0),
    "ln_structured": lambda m: prune.ln_structured(m, "weight", 1, 2, 0),
    "custom_from_mask": lambda m: prune.custom_from_mask(m, "weight", torch.ones(2, 3)),
    "remove": lambda m: prune.remove(m, "weight"),
    "apply": lambda m: prune.L1Unstructured.apply(m, "weight", 1),
    "global_unstructured": lambda m: prune.global_unstructured(
        [(m, "weight"), (copy.deepcopy(m), "weight")], prune.L1Unstructured, amount=1
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_no_program_is_refused_with_the_mend(name: str):
    message = (
        r"expected a Program, got a Linear; capture the model first: program = fxprune.capture"
    )
    source = nn.Linear(3, 2)
    with pytest.raises(PassTypeError, match=message):
        ASKED[name](source)
    assert list(source.state_dict()) == ["weight", "bias"]
    with pytest.raises(TypeError):
        ASKED[name](None)


def test_only_masked_parameters_can_be_removed():
    p = prune.identity(program("mlp"), "2.weight")
    before = snapshot(p)
    with pytest.raises(NotPrunedError) as caught:
        prune.remove(p, "0.weight")
    assert str(caught.value) == (
        "parameter '0.weight' has to be pruned before its mask can be removed; masked are 2.weight"
    )
    with pytest.raises(NotPrunedError, match="masked are none"):
        prune.remove(program("mlp"), "0.weight")
    with pytest.raises(MissingParameterError, match=r"no parameter '0.weigh'; did you mean"):
        prune.remove(p, "0.weigh")
    assert snapshot(p) == before


@pytest.mark.parametrize("name", [None, 3, b"weight"])
def test_a_name_that_is_no_text_is_a_type_error(name: Any):
    with pytest.raises(TypeError):
        torch_prune.identity(model("linear"), name)
    p = program("linear")
    before = snapshot(p)
    with pytest.raises(PassTypeError):
        prune.identity(p, name)
    assert snapshot(p) == before


@pytest.mark.parametrize("name", ["weight_mask", "weight_orig", "", ".", "0.running_mean"])
def test_only_parameters_have_names(name: str):
    p = prune.identity(program("linear"), "weight")
    before = snapshot(p)
    with pytest.raises(MissingParameterError, match=f"no parameter {name!r}"):
        prune.l1_unstructured(p, name, 1)
    assert snapshot(p) == before


def test_global_pruning_takes_pairs_of_one_program():
    p, q = program("mlp"), program("mlp")
    wrong: list[Any] = [[], [(p, "0.weight"), (q, "0.weight")], 3, [p], [(p, "0.weight", 1)]]
    for parameters in wrong:
        with pytest.raises((TypeError, ValueError)):
            prune.global_unstructured(parameters, prune.L1Unstructured, amount=1)
    with pytest.raises(PassTypeError, match="parameters name 2 programs; name some of one"):
        prune.global_unstructured(wrong[1], prune.L1Unstructured, amount=1)
    assert not p.masks
    assert not q.masks


@pytest.mark.parametrize("method", [None, "L1Unstructured", nn.Identity, nn.Linear])
def test_global_pruning_takes_method_classes(method: Any):
    p = program("mlp")
    with pytest.raises(TypeError):
        prune.global_unstructured([(p, "0.weight")], method, amount=1)
    with pytest.raises(TypeError):
        prune.global_unstructured([(p, "0.weight")], method)
    assert not p.masks


def test_a_parameter_counts_once_globally_however_often_it_is_named():
    p = program("tied")
    pairs = [(p, "out.weight"), (p, "emb.weight"), (p, "emb.weight")]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.5)
    assert int((p.masks["emb.weight"] == 0).sum()) == 6


# Asking


def test_programs_and_hooked_modules_are_pruned_or_not():
    p, source = program("mlp"), model("mlp")
    assert not prune.is_pruned(p)
    assert not prune.is_pruned(source)
    assert prune.is_pruned(prune.identity(p, "0.bias"))
    torch_prune.identity(source.get_submodule("2"), "weight")
    assert prune.is_pruned(source)
    assert prune.is_pruned(source) == torch_prune.is_pruned(source)
    assert not prune.is_pruned(prune.remove(p, "0.bias"))
    assert prune.is_pruned is fxprune.is_pruned
