"""Strategies for pruning calls: frozen data that shrinks towards few plain calls."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune.program import Program
from fxprune.testing.calls import KINDS, STRUCTURED, Call

__all__ = ["parameters_of", "pruning_sequences"]

_ORDINARY = (0.5, 0.2, 0.0, 1.0, 0.3, 0.9)
_UNSTRUCTURED = tuple(kind for kind in KINDS if kind not in STRUCTURED)
_OUT_OF_RANGE = (1.5, -0.1, -1)
_RARELY = st.sampled_from([False] * 9 + [True])
_SEEDS = st.integers(0, 2**16)


def parameters_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of a model by their first name, aliases left out."""
    if isinstance(model, Program):
        return {name: model.parameter(name) for name in model.aliases}
    return dict(model.named_parameters() if isinstance(model, nn.Module) else model)


def _amounts(numel: int) -> st.SearchStrategy[float | int]:
    """Draw shares and counts, the ends and what is out of range among them."""
    return st.one_of(
        st.sampled_from(_ORDINARY),
        st.integers(0, min(numel, 4)),
        st.floats(0.0, 1.0),
        st.integers(0, numel + 1),
        st.sampled_from(_OUT_OF_RANGE),
    )


# Optional scores: mostly the weights themselves.
_SCORES = st.sampled_from([False, False, True]).flatmap(lambda own: _SEEDS if own else st.none())


def _ranked(kind: str, names: tuple[str, ...], size: int) -> st.SearchStrategy[Call]:
    scores = _SCORES if kind in ("l1_unstructured", "global_unstructured") else st.none()
    methods = ["l1", "random", "identity", "every_other", "thirds"]
    method = st.sampled_from(methods) if kind == "global_unstructured" else st.just("l1")
    return st.builds(
        Call,
        st.just(kind),
        st.just(names),
        amount=_amounts(size),
        method=method,
        seed=_SEEDS,
        scores_seed=scores,
        misshapen=_RARELY if kind == "l1_unstructured" else st.just(False),
    )


def _structured(kind: str, name: str, parameter: Tensor) -> st.SearchStrategy[Call]:
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
        amount=_amounts(max(parameter.shape)),
        n=st.sampled_from(norm_orders if kind == "ln_structured" else [2]),
        dim=dims,
        seed=_SEEDS,
        scores_seed=_SCORES if kind == "ln_structured" else st.none(),
    )


def _one_call(kind: str, name: str, pool: dict[str, Tensor]) -> st.SearchStrategy[Call]:
    """Draw a call of a kind on a parameter; `pool` has what else a global call may take."""
    parameter = pool[name]
    one = (name,)
    if kind in STRUCTURED:
        return _structured(kind, name, parameter)
    if kind == "global_unstructured":
        several = st.permutations(list(pool)).map(tuple)
        return several.flatmap(lambda names: _ranked(kind, names, parameter.numel()))
    if kind == "custom_from_mask":
        keeps = st.sampled_from([0.5, 0.9, 0.0, 1.0])
        return st.builds(
            Call,
            st.just(kind),
            st.just(one),
            mask_seed=_SEEDS,
            keep=keeps,
            soft=_RARELY,
            misshapen=_RARELY,
        )
    if kind == "own_method":
        methods = ["every_other", "thirds", *(["channels"] if parameter.ndim > 1 else [])]
        return st.builds(
            Call,
            st.just(kind),
            st.just(one),
            method=st.sampled_from(methods),
            dim=st.integers(-parameter.ndim, parameter.ndim - 1),
            seed=_SEEDS,
            scores_seed=_SCORES,
        )
    if kind in ("identity", "remove"):
        return st.just(Call(kind, one))
    return _ranked(kind, one, parameter.numel())


@st.composite
def pruning_sequences(
    draw: st.DrawFn, model: nn.Module | Mapping[str, Tensor], *, max_calls: int = 6
) -> tuple[Call, ...]:
    """Draw calls of torch.nn.utils.prune's functions, as data, for `assert_parity`.

    They are on at most three of the parameters, so that most are pruned again and again. Some are
    calls that torch refuses: amounts out of range, misshapen masks, a `remove` of what has no mask.

    Args:
        draw: given by hypothesis.
        model: a Program or any module whose parameters to prune, or tensors by parameter name.
        max_calls: how many calls there are at most.

    Example:
        >>> from hypothesis import find
        >>> calls = pruning_sequences(nn.Linear(2, 3, bias=False))
        >>> find(calls, lambda drawn: drawn[0].kind == "remove")
        (Call('remove', ('weight',)),)
    """
    parameters = parameters_of(model)
    names = st.sampled_from(list(parameters))
    chosen = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    pool = {name: parameters[name] for name in chosen}
    drawn: list[Call] = []
    for _ in range(draw(st.integers(1, max_calls))):
        name = draw(st.sampled_from(chosen))
        kinds = (*KINDS, *STRUCTURED) if pool[name].ndim > 1 else _UNSTRUCTURED
        drawn.append(draw(_one_call(draw(st.sampled_from(kinds)), name, pool)))
    return tuple(drawn)
