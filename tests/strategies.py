"""Hypothesis strategies: architectures, and sequences of pruning calls on them, as data.

What is drawn is frozen, prints as code that builds it again, and shrinks towards few narrow
layers and few plain calls. Used like this:

    @given(cases())
    def test_something(case):
        model, args, kwargs = build(case.arch)
        for call in case.calls: ...
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.architecture import Arch, build
from tests.calls import KINDS, STRUCTURED, Call
from tests.layers import (
    ACTIVATIONS,
    RECURRENT,
    SPATIAL,
    Activation,
    Attention,
    Concat,
    Conv,
    Dropout,
    Layer,
    Linear,
    Norm,
    Recurrent,
    Residual,
    Shared,
)

__all__ = ["SHAPES", "Case", "archs", "calls", "canonical", "cases", "sequences"]

SHAPES = ("features", "sequence", "tokens", *SPATIAL)
MAX_WIDTH = 6
ORDINARY = (0.5, 0.2, 0.0, 1.0, 0.3, 0.9)
UNSTRUCTURED = tuple(kind for kind in KINDS if kind not in STRUCTURED)
OUT_OF_RANGE = (1.5, -0.1, -1)
OUTLIERS = (float("inf"), float("nan"), -0.0, 1e-40)
RARELY = st.sampled_from([False] * 9 + [True])
SEEDS = st.integers(0, 2**16)


@dataclass(frozen=True)
class Case:
    """An architecture and what is to be done to its parameters, in order."""

    arch: Arch
    calls: tuple[Call, ...]


@lru_cache(maxsize=512)
def canonical(arch: Arch) -> dict[str, Tensor]:
    """The parameters of an architecture by their first name, aliases left out."""
    return dict(build(arch).model.named_parameters())


# Architectures


def linears(width: st.SearchStrategy[int]) -> st.SearchStrategy[Layer]:
    return st.builds(Linear, width, st.booleans())


def convs(width: st.SearchStrategy[int]) -> st.SearchStrategy[Layer]:
    kernels = st.sampled_from([1, 3])
    return st.builds(Conv, width, kernels, st.booleans(), st.booleans())


def attentions(width: int) -> st.SearchStrategy[Layer]:
    heads = [h for h in (1, 2, 3) if width % h == 0]
    return st.builds(Attention, st.sampled_from(heads), st.booleans())


def weighted(shape: str, width: st.SearchStrategy[int]) -> st.SearchStrategy[Layer]:
    """A linear layer, or a convolution where the shape is spatial."""
    return convs(width) if shape in SPATIAL else linears(width)


def norms(shape: str) -> st.SearchStrategy[Layer]:
    if shape in SPATIAL:
        return st.sampled_from([Norm("batch"), Norm("group")])
    kinds = ["layer", "batch"] if shape == "features" else ["layer"]
    return st.sampled_from([Norm(kind) for kind in kinds])


def wrapped(shape: str, width: int) -> st.SearchStrategy[Layer]:
    """Layers around a layer: a skip, a concatenation, a second call."""
    same = weighted(shape, st.just(width))
    inner = same | attentions(width) if shape == "sequence" else same
    options: list[st.SearchStrategy[Layer]] = [
        st.builds(Residual, inner),
        st.builds(Shared, same | norms(shape), st.sampled_from([1, 2])),
    ]
    if width <= MAX_WIDTH:
        options.append(st.builds(Concat, weighted(shape, st.integers(1, MAX_WIDTH))))
    return st.one_of(options)


def recurrents() -> st.SearchStrategy[Layer]:
    kinds = st.sampled_from(list(RECURRENT))
    widths = st.integers(1, MAX_WIDTH)
    return st.builds(Recurrent, kinds, widths, st.sampled_from([1, 2]), st.booleans())


def owning(shape: str, width: int) -> list[st.SearchStrategy[Layer]]:
    """The kinds of layers that own a matrix."""
    plain = weighted(shape, st.integers(1, MAX_WIDTH))
    return [plain, recurrents(), attentions(width)] if shape == "sequence" else [plain]


def layers(shape: str, width: int) -> st.SearchStrategy[Layer]:
    """One layer for `width` channels of the given kind of shape, each kind as likely."""
    options = [
        *owning(shape, width),
        st.builds(Activation, st.sampled_from(list(ACTIVATIONS))),
        norms(shape),
        wrapped(shape, width),
        st.builds(Dropout, st.sampled_from([0.2, 0.5])),
    ]
    # not one_of: it flattens what is nested, and so makes nested kinds likelier
    return st.sampled_from(options).flatmap(lambda option: option)


@st.composite
def archs(draw: st.DrawFn, max_layers: int = 5) -> Arch:
    """Architectures with at least one matrix."""
    shape = draw(st.sampled_from(SHAPES))
    first = draw(st.integers(1, MAX_WIDTH))
    inner = "sequence" if shape == "tokens" else shape
    stack = [draw(draw(st.sampled_from(owning(inner, first))))]
    width = stack[0].width_out(first)
    for _ in range(draw(st.integers(0, max_layers - 1))):
        stack.append(draw(layers(inner, width)))
        width = stack[-1].width_out(width)
    return Arch(
        shape,
        first,
        tuple(stack),
        tied=shape == "tokens" and draw(st.booleans()),
        keywords=draw(st.sampled_from([False, False, False, True])),
        dtype=draw(st.sampled_from(["float32"] * 4 + ["float64", "bfloat16"])),
        grid=draw(st.sampled_from([None, None, 0.5])),
        outlier=draw(st.sampled_from([*[None] * 9, *OUTLIERS])),
        frozen=draw(st.sampled_from([False, False, False, True])),
        seed=draw(SEEDS),
    )


# Calls


def amounts(numel: int) -> st.SearchStrategy[float | int]:
    """Shares and counts, the ends and what is out of range among them."""
    return st.one_of(
        st.sampled_from(ORDINARY),
        st.integers(0, min(numel, 4)),
        st.floats(0.0, 1.0),
        st.integers(0, numel + 1),
        st.sampled_from(OUT_OF_RANGE),
    )


# Optional scores: mostly the weights themselves.
SCORES = st.sampled_from([False, False, True]).flatmap(lambda own: SEEDS if own else st.none())


def ranked(kind: str, names: tuple[str, ...], size: int) -> st.SearchStrategy[Call]:
    scores = SCORES if kind in ("l1_unstructured", "global_unstructured") else st.none()
    methods = ["l1", "random", "identity", "every_other", "thirds"]
    method = st.sampled_from(methods) if kind == "global_unstructured" else st.just("l1")
    return st.builds(
        Call,
        st.just(kind),
        st.just(names),
        amount=amounts(size),
        method=method,
        seed=SEEDS,
        scores_seed=scores,
        misshapen=RARELY if kind == "l1_unstructured" else st.just(False),
    )


def structured(kind: str, name: str, parameter: Tensor) -> st.SearchStrategy[Call]:
    ndim = parameter.ndim
    dims = st.sampled_from([*range(ndim), *range(-ndim, 0), ndim])
    norm_orders = [2, 1, float("inf"), float("-inf"), 0, 3.5, "fro"]
    # torch 2.14 takes "nuc" over the last two dimensions, always.
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14):
        norm_orders.append("nuc")
    return st.builds(
        Call,
        st.just(kind),
        st.just((name,)),
        amount=amounts(max(parameter.shape)),
        n=st.sampled_from(norm_orders if kind == "ln_structured" else [2]),
        dim=dims,
        seed=SEEDS,
        scores_seed=SCORES if kind == "ln_structured" else st.none(),
    )


def one_call(kind: str, name: str, pool: dict[str, Tensor]) -> st.SearchStrategy[Call]:
    """A call of a kind on a parameter; `pool` has what else a global call may take."""
    parameter = pool[name]
    one = (name,)
    if kind in STRUCTURED:
        return structured(kind, name, parameter)
    if kind == "global_unstructured":
        several = st.permutations(list(pool)).map(tuple)
        return several.flatmap(lambda names: ranked(kind, names, parameter.numel()))
    if kind == "custom_from_mask":
        keeps = st.sampled_from([0.5, 0.9, 0.0, 1.0])
        return st.builds(
            Call,
            st.just(kind),
            st.just(one),
            mask_seed=SEEDS,
            keep=keeps,
            soft=RARELY,
            misshapen=RARELY,
        )
    if kind == "own_method":
        methods = ["every_other", "thirds", *(["channels"] if parameter.ndim > 1 else [])]
        return st.builds(
            Call,
            st.just(kind),
            st.just(one),
            method=st.sampled_from(methods),
            dim=st.integers(-parameter.ndim, parameter.ndim - 1),
            seed=SEEDS,
            scores_seed=SCORES,
        )
    if kind in ("identity", "remove"):
        return st.just(Call(kind, one))
    return ranked(kind, one, parameter.numel())


@st.composite
def calls(draw: st.DrawFn, parameters: dict[str, Tensor], max_calls: int = 6) -> tuple[Call, ...]:
    """Calls on at most three of the parameters, so that most are pruned again and again."""
    names = st.sampled_from(list(parameters))
    chosen = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    pool = {name: parameters[name] for name in chosen}
    drawn: list[Call] = []
    for _ in range(draw(st.integers(1, max_calls))):
        name = draw(st.sampled_from(chosen))
        kinds = (*KINDS, *STRUCTURED) if pool[name].ndim > 1 else UNSTRUCTURED
        drawn.append(draw(one_call(draw(st.sampled_from(kinds)), name, pool)))
    return tuple(drawn)


@st.composite
def sequences(draw: st.DrawFn, count: int, max_layers: int = 5) -> tuple[Case, ...]:
    """Several sequences of calls on one architecture, whose capture they can share."""
    arch = draw(archs(max_layers))
    return tuple(Case(arch, draw(calls(canonical(arch)))) for _ in range(count))


def cases(max_layers: int = 5) -> st.SearchStrategy[Case]:
    """An architecture and one sequence of calls on it."""
    return sequences(1, max_layers).map(lambda drawn: drawn[0])
