"""Nested values, models and Programs compared, bit for bit or closely; says where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.program import Program
from fxprune.rewrite import BOUND
from fxprune.support import same_bits
from fxprune.verification import Holder, Side, Trial, run, trials_of, verify
from fxprune.words import dtype_name


class DifferenceError(AssertionError):
    """Two things that should be equal differ; says where first, and by which values."""


def difference(a: Any, b: Any) -> str | None:
    """Return the first place where two nests differ in structure, shape, dtype or bits, or None.

    Example:
        >>> import torch
        >>> difference({"y": torch.tensor([1.0, 2.0])}, {"y": torch.tensor([1.0, 2.5])})
        "at ['y'], entry (1,): 2.0 and 2.5; 1 of 2 entries differ"
    """
    first, first_spec = pytree.tree_flatten_with_path(a)
    second, second_spec = pytree.tree_flatten_with_path(b)
    if first_spec != second_spec:
        return f"the structures differ: {first_spec} and {second_spec}"
    for (path, x), (_, y) in zip(first, second, strict=True):
        if not _same_leaf(x, y):
            return f"at {pytree.keystr(path) or 'the top'}{entry_difference(x, y)}"
    return None


def is_same(a: Any, b: Any) -> bool:
    """Tell whether two nests have the same structure, shapes, dtypes and bits."""
    return difference(a, b) is None


def entry_difference(a: Any, b: Any) -> str:
    """Return the first entry in which two tensors differ, with its values, or how others differ."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return f": {_describe(a)} and {_describe(b)}"
    if (a.shape, a.dtype) != (b.shape, b.dtype) or a.is_meta or b.is_meta:
        return f": {_describe(a)} and {_describe(b)}"
    a, b = a.detach().cpu(), b.detach().cpu()
    differ = ~((a == b) | ((a != a) & (b != b)))  # NaN alone differs from itself
    if not bool(differ.any()) and a.is_floating_point():
        differ = a.signbit() != b.signbit()
    where = differ.nonzero()
    if len(where) == 0:
        return ": the bits of NaN differ"
    at = tuple(where[0].tolist())
    count = f"{len(where)} of {a.numel()} entries differ"
    entry = f", entry {at}" if at else ""
    return f"{entry}: {a[at].item()} and {b[at].item()}; {count}"


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return same_bits(a, b)
    return type(a) is type(b) and bool(a == b)


def _describe(x: Any) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    shape = "" if x.is_meta else f" {x.detach().flatten()[:12].tolist()}"
    return f"{dtype_name(x.dtype)} {tuple(x.shape)}{shape}"


def assert_same(
    after: Any,
    before: Any,
    args: tuple[Any, ...] | Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    trials: int = 3,
    seed: int = 0,
) -> None:
    """Assert that two models give equal outputs in both modes, or that two values are equal.

    Args:
        after: a Program, any module, or a nest of tensors.
        before: what it is held to.
        args: positional inputs for models; some are drawn as well where one is a Program.
        kwargs: keyword inputs for models.
        trials: how many inputs to draw for each mode.
        seed: of what is drawn.

    Raises:
        DifferenceError: an AssertionError that names the first output, node, parameter or entry
            that differs, and its values.
        InputError: there is no input to compare models on.

    Example:
        >>> import torch
        >>> assert_same({"y": torch.ones(2)}, {"y": torch.tensor([1.0, 2.0])})
        Traceback (most recent call last):
        fxprune.testing.comparing.DifferenceError: at ['y'], entry (1,): 1.0 and 2.0; 1 of 2
        entries differ (after first)
    """
    if isinstance(after, nn.Module) and isinstance(before, nn.Module):
        _verify(after, before, args, kwargs, wide=False, trials=trials, seed=seed)
        return
    if fault := difference(after, before):
        raise DifferenceError(f"{fault} (after first)")


def assert_close(
    after: Any,
    before: Any,
    args: tuple[Any, ...] | Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    bound: float = BOUND,
    trials: int = 3,
    seed: int = 0,
) -> None:
    """Assert that two models, in float64, give close outputs in eval mode, or two values are close.

    Args:
        after: a Program, any module, or a nest of tensors.
        before: what it is held to.
        args: positional inputs for models; some are drawn as well where one is a Program.
        kwargs: keyword inputs for models.
        bound: the largest difference, times the largest number compared where that is above 1.
        trials: how many inputs to draw.
        seed: of what is drawn.

    Raises:
        DifferenceError: an AssertionError that names the first output, node, parameter or entry
            that differs by more, and its values.
        InputError: there is no input to compare models on.

    Example:
        >>> import torch
        >>> assert_close(torch.tensor(1.0), torch.tensor(1.0 + 1e-6), bound=1e-5)
    """
    if isinstance(after, nn.Module) and isinstance(before, nn.Module):
        close: Any = {"promise": "close", "bound": bound, "modes": ("eval",)}
        _verify(after, before, args, kwargs, wide=True, trials=trials, seed=seed, **close)
        return
    differing = [d for d in Holder(bound).nests("value", after, before) if d.text]
    if differing:
        entry = difference(after, before)
        raise DifferenceError(f"{differing[0].where} {differing[0].text}: {entry} (after first)")


def _verify(
    after: nn.Module, before: nn.Module, args: Any, kwargs: Any, *, wide: bool, **options: Any
) -> None:
    """Raise what a certificate says, with the first entries and parameters that differ."""
    certificate = verify(after, before, args, kwargs, **options)
    if certificate:
        return
    first = certificate.failures[0]
    spec = next((side for side in (before, after) if isinstance(side, Program)), None)
    positional = (args,) if isinstance(args, Tensor) else tuple(args or ())
    given = None if args is None and kwargs is None else (positional, dict(kwargs or {}))
    count = certificate.trials + len(certificate.skipped)
    trials = trials_of(first.mode, given, spec, count, certificate.seed)
    trial = next((each for each in trials if each.label == first.input), None)
    fault = "" if trial is None else _entries(after, before, trial, certificate.seed, wide=wide)
    more = len(certificate.failures) - 1
    others = f"\nand {more} more" if more else ""
    raise DifferenceError(f"{first}{fault}{_first_parameter(after, before)}{others}")


def _entries(after: nn.Module, before: nn.Module, trial: Trial, seed: int, *, wide: bool) -> str:
    a, b = (run(Side(side, wide=wide), trial, seed=seed) for side in (after, before))
    if a.error or b.error:
        return ""
    fault = difference(a.output, b.output)
    return "" if fault is None else f"\noutput {fault} (after first)"


def _first_parameter(after: nn.Module, before: nn.Module) -> str:
    ours, theirs = _values(after), _values(before)
    for name, value in theirs.items():
        if name in ours and difference(ours[name], value) is not None:
            fault = entry_difference(ours[name], value)
            return f"\nthe first parameter that differs is {name!r}{fault} (after first)"
    return ""


def _values(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, Program):
        return {name: model.value(name) for name in model.aliases}
    return {name: p.detach() for name, p in model.named_parameters()}
