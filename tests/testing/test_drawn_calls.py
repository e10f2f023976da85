"""The strategies themselves: every region is reached, and everything that is drawn runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from torch.nn.utils import prune

from fxprune.testing import architecture
from fxprune.testing.architecture import Arch, ArchLayer, build
from fxprune.testing.calls import KINDS, STRUCTURED, Call, methods_of
from fxprune.testing.drawing import SHAPES, architectures, pruning_sequences
from tests.models.cases import Case, canonical, cases
from tests.tools.batches import with_batch

# Always the same examples, none of them shrunk.
SAMPLED = settings(
    max_examples=800,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@cache
def sample() -> list[Case]:
    """The first cases that are drawn: what they do not reach is drawn too rarely to matter."""
    drawn: list[Case] = []

    @SAMPLED
    @given(cases())
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    return drawn


def flat(arch: Arch) -> list[ArchLayer]:
    """The layers of an architecture and those inside them."""
    inner = [layer.inner for layer in arch.layers if hasattr(layer, "inner")]  # type: ignore[attr-defined]
    return [*arch.layers, *inner]


def has(layer: type, **wanted: object) -> Callable[[Arch], bool]:
    def holds(arch: Arch) -> bool:
        found = [each for each in flat(arch) if isinstance(each, layer)]
        return any(all(getattr(each, k) == v for k, v in wanted.items()) for each in found)

    return holds


ARCHS: dict[str, Callable[[Arch], bool]] = {
    **{shape: (lambda arch, shape=shape: arch.shape == shape) for shape in SHAPES},
    **{
        f"conv on {shape}": (
            lambda arch, shape=shape: arch.shape == shape and has(architecture.Conv)(arch)
        )
        for shape in architecture.SPATIAL
    },
    **{f"norm {kind}": has(architecture.Norm, kind=kind) for kind in ("batch", "layer", "group")},
    **{kind: has(architecture.Recurrent, kind=kind) for kind in architecture.RECURRENT},
    **{dtype: (lambda arch, d=dtype: arch.dtype == d) for dtype in ("float64", "bfloat16")},
    "depthwise": has(architecture.Conv, depthwise=True, kernel=3),
    "bidirectional": has(architecture.Recurrent, bidirectional=True, layers=2),
    "attention": has(architecture.Attention),
    "prelu": has(architecture.Activation, kind="prelu"),
    "dropout": has(architecture.Dropout),
    "residual": has(architecture.Residual),
    "residual attention": lambda arch: any(
        isinstance(layer, architecture.Residual) and isinstance(layer.inner, architecture.Attention)
        for layer in arch.layers
    ),
    "concat": has(architecture.Concat),
    "called twice": has(architecture.Shared, names=1),
    "two names": has(architecture.Shared, names=2),
    "tied": lambda arch: arch.tied,
    "keywords": lambda arch: arch.keywords,
    "ties": lambda arch: arch.grid is not None,
    "infinity": lambda arch: arch.outlier == float("inf"),
    "frozen": lambda arch: arch.frozen,
    "width 1": lambda arch: arch.width == 1,
    "five layers": lambda arch: len(arch.layers) == 5,
}


@pytest.mark.thorough
@pytest.mark.parametrize("region", ARCHS)
def test_each_kind_of_architecture_is_reached(region: str) -> None:
    assert any(ARCHS[region](case.arch) for case in sample())


def kinds(case: Case) -> list[str]:
    return [call.kind for call in case.calls]


def on_one_name(first: Callable[[Call], bool], then: Callable[[Call], bool]):
    """Holds where a call of one sort is followed by one of another on the same parameter."""

    def holds(case: Case) -> bool:
        pairs = [(a, b) for i, a in enumerate(case.calls) for b in case.calls[i + 1 :]]
        return any(first(a) and then(b) and set(a.names) & set(b.names) for a, b in pairs)

    return holds


def any_call(holds: Callable[[Call], bool]) -> Callable[[Case], bool]:
    return lambda case: any(holds(call) for call in case.calls)


CASES: dict[str, Callable[[Case], bool]] = {
    **{kind: any_call(lambda call, k=kind: call.kind == k) for kind in KINDS},
    **{
        f"global {method}": any_call(
            lambda call, m=method: call.kind == "global_unstructured" and call.method == m
        )
        for method in methods_of(prune)
        if method != "channels"
    },
    "own structured method": any_call(
        lambda call: call.kind == "own_method" and call.method == "channels"
    ),
    "no amount": any_call(lambda call: call.kind == "l1_unstructured" and call.amount == 0.0),
    "all": any_call(lambda call: call.kind == "l1_unstructured" and call.amount == 1.0),
    "soft mask": any_call(lambda call: call.soft),
    "misshapen mask": any_call(lambda call: call.misshapen and call.kind == "custom_from_mask"),
    "misshapen scores": any_call(lambda call: call.misshapen and call.scores_seed is not None),
    "count": any_call(lambda call: isinstance(call.amount, int) and call.amount > 0),
    "out of range": any_call(lambda call: call.amount == 1.5),
    "scores": any_call(lambda call: call.scores_seed is not None),
    "global scores": any_call(
        lambda call: call.kind == "global_unstructured" and call.scores_seed is not None
    ),
    "inner dimension": any_call(lambda call: call.kind == "ln_structured" and call.dim == 1),
    "negative dimension": any_call(lambda call: call.kind == "ln_structured" and call.dim == -1),
    "several parameters": any_call(lambda call: len(call.names) == 3),
    "pruned again": on_one_name(
        lambda call: call.kind == "ln_structured", lambda call: call.kind == "l1_unstructured"
    ),
    "pruned after remove": lambda case: (
        on_one_name(
            lambda call: call.kind == "remove", lambda call: call.kind == "random_unstructured"
        )(case)
        and kinds(case)[0] != "remove"
    ),
    "all pruned, then more": on_one_name(
        lambda call: "unstructured" in call.kind and call.amount == 1.0,
        lambda call: call.kind in STRUCTURED,
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("region", CASES)
def test_each_kind_of_sequence_is_reached(region: str) -> None:
    assert any(map(CASES[region], sample()))


@given(architectures(non_finite=True))
def test_every_model_runs_and_is_the_same_each_time(arch: Arch) -> None:
    first, second = build(arch), build(arch)
    for batch in (3, 2):
        args, kwargs = with_batch(first.args, first.kwargs, batch)
        for train in (True, False):
            results = []
            for model in (first.model.train(train), second.model.train(train)):
                torch.manual_seed(0)
                results.append(model(*args, **kwargs))
            torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


@given(architectures(non_finite=True))
def test_models_are_tiny(arch: Arch) -> None:
    assert len(list(build(arch).model.modules())) < 30
    assert sum(p.numel() for p in build(arch).model.parameters()) < 10_000


@given(cases())
def test_calls_name_parameters_by_their_first_name(case: Case) -> None:
    names = [name for call in case.calls for name in call.names]
    first: dict[int, str] = {}
    for name, p in build(case.arch).model.named_parameters(remove_duplicate=False):
        first.setdefault(id(p), name)
    assert set(names) <= set(first.values())
    assert list(canonical(case.arch)) == list(first.values())


@given(cases())
def test_a_case_prints_as_what_makes_it(case: Case) -> None:
    names = dict(vars(architecture))
    names |= {"Case": Case, "Arch": Arch, "Call": Call, "inf": math.inf, "nan": math.nan}
    # as texts, because NaN differs from itself
    assert repr(eval(repr(case), names)) == repr(case)


@pytest.mark.thorough  # a minute of drawing
def test_calls_shrink_to_one_plain_call() -> None:
    arch = find(architectures(), lambda _: True)
    assert arch == Arch("features", 1, (architecture.Linear(1, False),))
    call = find(
        pruning_sequences(canonical(arch)),
        lambda drawn: any(c.kind == "l1_unstructured" for c in drawn),
    )
    assert call == (Call("l1_unstructured", ("layers.0.weight",)),)


def test_own_methods_prune_as_they_say() -> None:
    linear, methods = torch.nn.Linear(4, 3), methods_of(prune)
    methods["every_other"].apply(linear, "bias")
    assert linear.get_buffer("bias_mask").tolist() == [0, 1, 0]
    methods["channels"].apply(linear, "weight", dim=1)
    assert linear.get_buffer("weight_mask").tolist() == [[0, 1, 1, 1]] * 3
