"""Strategies for architectures: frozen data that prints as code and shrinks to few plain layers."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from fxprune.testing.architecture import Arch
from fxprune.testing.layers import (
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

__all__ = ["DTYPES", "SHAPES", "architectures"]

SHAPES = ("features", "sequence", "tokens", *SPATIAL)
DTYPES = ("float32", "float64", "bfloat16")
_MAX_WIDTH = 6
_LONGEST_RUN = 8
_OUTLIERS = (float("inf"), float("nan"), -0.0, 1e-40)


def _linears(width: st.SearchStrategy[int]) -> st.SearchStrategy[Layer]:
    return st.builds(Linear, width, st.booleans())


def _convs(width: st.SearchStrategy[int]) -> st.SearchStrategy[Layer]:
    kernels = st.sampled_from([1, 3])
    return st.builds(Conv, width, kernels, st.booleans(), st.booleans())


def _attentions(width: int) -> st.SearchStrategy[Layer]:
    heads = [h for h in (1, 2, 3) if width % h == 0]
    return st.builds(Attention, st.sampled_from(heads), st.booleans())


def _weighted(shape: str, width: st.SearchStrategy[int]) -> st.SearchStrategy[Layer]:
    """Draw a linear layer, or a convolution where the shape is spatial."""
    return _convs(width) if shape in SPATIAL else _linears(width)


def _norms(shape: str) -> st.SearchStrategy[Layer]:
    if shape in SPATIAL:
        return st.sampled_from([Norm("batch"), Norm("group")])
    kinds = ["layer", "batch"] if shape == "features" else ["layer"]
    return st.sampled_from([Norm(kind) for kind in kinds])


def _wrapped(shape: str, width: int) -> st.SearchStrategy[Layer]:
    """Draw layers around a layer: a skip, a concatenation, a second call."""
    same = _weighted(shape, st.just(width))
    inner = same | _attentions(width) if shape == "sequence" else same
    options: list[st.SearchStrategy[Layer]] = [
        st.builds(Residual, inner),
        st.builds(Shared, same | _norms(shape), st.sampled_from([1, 2])),
    ]
    if width <= _MAX_WIDTH:
        options.append(st.builds(Concat, _weighted(shape, st.integers(1, _MAX_WIDTH))))
    return st.one_of(options)


def _recurrents() -> st.SearchStrategy[Layer]:
    kinds = st.sampled_from(list(RECURRENT))
    widths = st.integers(1, _MAX_WIDTH)
    return st.builds(Recurrent, kinds, widths, st.sampled_from([1, 2]), st.booleans())


def _owning(shape: str, width: int) -> list[st.SearchStrategy[Layer]]:
    """Return the kinds of layers that own a matrix."""
    plain = _weighted(shape, st.integers(1, _MAX_WIDTH))
    return [plain, _recurrents(), _attentions(width)] if shape == "sequence" else [plain]


def _layers(shape: str, width: int, last: Layer) -> st.SearchStrategy[Layer]:
    """Draw a layer for `width` channels, each kind as likely; one kind is the last layer again."""
    options = [
        *_owning(shape, width),
        st.builds(Activation, st.sampled_from(list(ACTIVATIONS))),
        _norms(shape),
        _wrapped(shape, width),
        st.builds(Dropout, st.sampled_from([0.2, 0.5])),
    ]
    if last.width_out(width) == width:
        options.append(st.just(last))
    # not one_of: it flattens what is nested, and so makes nested kinds likelier
    return st.sampled_from(options).flatmap(lambda option: option)


@st.composite
def architectures(
    draw: st.DrawFn,
    *,
    max_layers: int = 5,
    shapes: Sequence[str] = SHAPES,
    dtypes: Sequence[str] = DTYPES,
    non_finite: bool = False,
    runs: bool = False,
) -> Arch:
    """Draw networks as data, each with at least one matrix; `build` makes the model.

    What is drawn is frozen, prints as code, and shrinks towards few narrow layers.

    Args:
        draw: given by hypothesis.
        max_layers: how many layers there are at most, those inside others not counted.
        shapes: kinds of inputs to draw from: features, sequence, tokens, signal, image, volume.
        dtypes: dtypes to draw from, the first one more often.
        non_finite: whether some have an infinity, a NaN, a -0.0 or a subnormal number in a matrix.
        runs: whether most end in a run of pointwise functions, for passes over neighbours.

    Example:
        >>> from hypothesis import find
        >>> find(architectures(), lambda arch: len(arch.layers) == 1)
        Arch(shape='features', width=1, layers=(Linear(width=1, bias=False),), tied=False, ...)
    """
    shape = draw(st.sampled_from(list(shapes)))
    first = draw(st.integers(1, _MAX_WIDTH))
    inner = "sequence" if shape == "tokens" else shape
    stack = [draw(draw(st.sampled_from(_owning(inner, first))))]
    width = stack[0].width_out(first)
    for _ in range(draw(st.integers(0, max_layers - 1))):
        stack.append(draw(_layers(inner, width, stack[-1])))
        width = stack[-1].width_out(width)
    if runs:
        pointwise = st.sampled_from(list(ACTIVATIONS)).map(Activation)
        stack += draw(st.lists(pointwise, max_size=_LONGEST_RUN))
    outliers = _OUTLIERS if non_finite else ()
    return Arch(
        shape,
        first,
        tuple(stack),
        tied=shape == "tokens" and draw(st.booleans()),
        keywords=draw(st.sampled_from([False, False, False, True])),
        dtype=draw(st.sampled_from([*[dtypes[0]] * 4, *dtypes[1:]])),
        grid=draw(st.sampled_from([None, None, 0.5])),
        outlier=draw(st.sampled_from([*[None] * 9, *outliers])),
        frozen=draw(st.sampled_from([False, False, False, True])),
        seed=draw(st.integers(0, 2**16)),
    )
