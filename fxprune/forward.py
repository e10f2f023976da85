"""A Program's forward, with the argument names and defaults of the source's."""

from __future__ import annotations

from typing import Any

from fxprune.errors import InvariantError
from fxprune.inputs import InputSpec

__all__ = ["forward_like"]


def forward_like(inputs: InputSpec) -> Any:
    """Return a `forward(self, ...)` that hands its arguments to `self._run`.

    torch.export and users name inputs by the signature, so that `*args, **kwargs` will not do.

    Args:
        inputs: whose signature the function gets.

    Raises:
        InvariantError: an argument's name is not a Python identifier.
    """
    signature = inputs.signature
    parameters = list(signature.parameters)[1:]
    for name in parameters:
        if not name.isidentifier():
            raise InvariantError(f"the argument name {name!r} is not a Python identifier")
    split = len(inputs.names)
    args = "".join(f"{name}, " for name in parameters[:split])
    kwargs = ", ".join(f"{name!r}: {name}" for name in parameters[split:])
    keyword_only = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    by_position = [name for name in parameters if name not in keyword_only]
    star = ["*", *keyword_only] if keyword_only else []
    head = ", ".join(["self", *by_position, *star])
    namespace: dict[str, Any] = {}
    exec(f"def forward({head}):\n    return self._run(({args}), {{{kwargs}}})\n", namespace)
    forward = namespace["forward"]
    given = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
    forward.__defaults__ = tuple(given[name] for name in by_position if name in given) or None
    forward.__kwdefaults__ = {name: given[name] for name in keyword_only if name in given} or None
    return forward
