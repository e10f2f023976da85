"""Make a network that fails a check simpler, step by step, as long as it still fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from fxprune.testing.architecture import Arch, build
from fxprune.testing.drawn_programs import Drawn
from fxprune.testing.layers import Activation, Dropout, Layer, Linear, Norm

__all__ = ["simplest"]


def simplest(case: Drawn, fails: Callable[[Drawn], bool]) -> Drawn:
    """Return a simpler Program that still fails: fewer, plainer, narrower layers, no masks.

    Args:
        case: fails.
        fails: tells whether another one fails in the same way.
    """
    reduced = True
    while reduced:
        reduced = False
        for simpler in _simpler(case):
            if _runs(simpler.arch) and fails(simpler):
                case, reduced = simpler, True
                break
    return case


def _simpler(case: Drawn) -> Iterator[Drawn]:
    """Yield simpler Programs, the simplest first; masks stay only where nothing else changes."""
    if case.recipe is not None:
        yield Drawn(case.arch)
        for rule in case.recipe.rules if len(case.recipe.rules) > 1 else ():
            yield Drawn(case.arch, case.recipe.model_copy(update={"rules": (rule,)}))
    for arch in _simpler_archs(case.arch):
        yield Drawn(arch, case.recipe)


def _simpler_archs(arch: Arch) -> Iterator[Arch]:
    layers = arch.layers
    if len(layers) > 1:
        for at in range(len(layers)):
            yield dataclasses.replace(arch, layers=(*layers[:at], *layers[at + 1 :]))
    if arch.shape != "features":
        yield dataclasses.replace(arch, shape="features", tied=False)
    for field in dataclasses.fields(arch)[3:]:
        if getattr(arch, field.name) != field.default:
            yield dataclasses.replace(arch, **{field.name: field.default})
    if arch.width > 1:
        yield dataclasses.replace(arch, width=1)
    for at, layer in enumerate(layers):
        for simpler in _simpler_layers(layer):
            yield dataclasses.replace(arch, layers=(*layers[:at], simpler, *layers[at + 1 :]))


def _simpler_layers(layer: Layer) -> Iterator[Layer]:
    if not isinstance(layer, Linear | Activation | Norm | Dropout):
        yield Linear(1)
    inner = getattr(layer, "inner", None)
    if isinstance(inner, Layer):
        yield inner
        for simpler in _simpler_layers(inner):
            yield _with(layer, "inner", simpler)
    for field in dataclasses.fields(layer):  # pyright: ignore[reportArgumentType]
        value = getattr(layer, field.name)
        least = field.default
        if field.default is dataclasses.MISSING:
            least = 1 if isinstance(value, int) else value
        if value != least:
            yield _with(layer, field.name, least)


def _with(layer: Any, name: str, value: Any) -> Any:
    return dataclasses.replace(layer, **{name: value})


def _runs(arch: Arch) -> bool:
    """Tell whether a network can be built and run: layers may not fit each other any more."""
    try:
        model, args, kwargs = build(arch)
        model(*args, **kwargs)
    except Exception:  # noqa: BLE001 - torch raises whatever it likes
        return False
    return True
