"""Certificates: what a comparison of two models found, and digests of graphs and tensors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from fxprune.program import Program, fingerprint


@dataclass(frozen=True)
class Failure:
    """One place where two models differ.

    `output` names an output or buffer and `difference` is the largest absolute one; both are None
    where a side raised. `node` is the first node of the graph whose value differs, `example` a
    small input on which they differ, where these were looked for.
    """

    mode: str
    input: str
    output: str | None
    difference: float | None
    message: str
    node: str | None = None
    example: str | None = None

    def __str__(self) -> str:
        text = f"{self.mode} mode, {self.input}: {self.message}"
        return text if self.example is None else f"{text}; they differ on {self.example}"


@dataclass(frozen=True)
class Evidence:
    """What was checked of one pass of a compile, and SHA-256 digests of graphs and tensors.

    `promise` is "same", "close", "masks", "unmasks", or "changes" for none; `rule` has the rules
    for which the pass ran, and `seed` is that of the first of them.
    """

    name: str
    promise: str
    graph_before: str
    graph_after: str
    weights_before: str
    weights_after: str
    checks: tuple[str, ...] = ()
    rule: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Certificate:
    """Whether two models keep a promise, on which inputs, and where they break it.

    Args:
        promise: "same" or "close".
        bound: the largest difference that the promise allows, times the size of the numbers
            compared where these are above 1; 0 for "same".
        seed: the seed of the inputs and of what the models draw.
        trials: how many times the two were run and compared, over all inputs and modes.
        inputs: the inputs compared, by mode.
        largest: the largest absolute difference of any output.
        failures: where they differ, in the order found.
        skipped: drawn inputs that neither side takes.
        passes: what was checked of each pass, where a compile made the certificate.
        recipe: what was compiled, as data; None where no compile made the certificate.

    Example:
        >>> certificate = Certificate("same", 0.0, 0, 2, ("eval: args", "train: args"), 0.0)
        >>> bool(certificate), str(certificate)
        (True, 'same: kept on 2 of 2 trials, largest difference 0')
    """

    promise: str
    bound: float
    seed: int
    trials: int
    inputs: tuple[str, ...]
    largest: float
    failures: tuple[Failure, ...] = ()
    skipped: tuple[str, ...] = ()
    passes: tuple[Evidence, ...] = ()
    recipe: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the promise is kept."""
        return not self.failures

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        broken = len({f"{f.mode}: {f.input}" for f in self.failures}.intersection(self.inputs))
        head = (
            f"{self.promise}: kept on {self.trials - broken} of {self.trials} trials, largest "
            f"difference {self.largest:g}"
        )
        return "\n".join([head, *map(str, self.failures)])

    def to_json(self) -> str:
        """Return all of it as JSON; numbers that JSON lacks are strings.

        Example:
            >>> certificate = Certificate("same", 0.0, 0, 1, ("eval: args",), float("inf"))
            >>> '"largest": "inf"' in certificate.to_json()
            True
        """
        return json.dumps(self.to_data(), indent=2, allow_nan=False)

    def to_data(self) -> dict[str, Any]:
        """Return all of it as data for JSON, sealed by a digest where a compile made it."""
        data = _jsonable({"ok": self.ok, **asdict(self)})
        return data if self.recipe is None else {**data, "digest": seal_of(data)}


def seal_of(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a certificate's data but for its "digest"."""
    rest = {key: value for key, value in data.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


UNCHECKED = Certificate(
    "nothing", 0.0, 0, 0, (), 0.0, (Failure("every", "every input", None, None, "not checked"),)
)


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(part) for key, part in value.items()}  # pyright: ignore
    if isinstance(value, (list, tuple)):
        return [_jsonable(part) for part in value]  # pyright: ignore
    return value


class Digests:
    """Remembers the digest of each tensor for as long as it lives and is not written to."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()

    def state(self, program: Program) -> str:
        """Return the digest of all persistent tensors of a Program, by their keys."""
        return _join({key: self._of(x) for key, x in _state(program).items()})

    def hidden_writes(self, program: Program) -> Iterator[str]:
        """Yield the keys of tensors that were written to past torch's count of writes."""
        for key, tensor in _state(program).items():
            known = self._known.get(tensor)
            if known is None or known[0] != _version(tensor):
                continue
            if digest_of(tensor) != known[1]:
                yield key

    def _of(self, tensor: torch.Tensor) -> str:
        version = _version(tensor)
        known = self._known.get(tensor)
        if version is None or known is None or known[0] != version:
            known = self._known[tensor] = version, digest_of(tensor)
        return known[1]


def digest_of(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's shape, dtype and values, wherever they are stored."""
    found = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if not tensor.is_meta:
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        # reshape: a tensor without dimensions cannot be viewed as bytes.
        content: Any = plain.reshape(-1).view(torch.uint8).numpy()
        found.update(content)
    return found.hexdigest()


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the digest of a state dict's tensors, as `Digests.state` gives it for a Program."""
    tensors = {key: x for key, x in state.items() if isinstance(x, torch.Tensor)}
    return _join({key: digest_of(x) for key, x in tensors.items()})


def graphs_digest(program: Program) -> str:
    """Return the digest of what the graphs compute, whatever their nodes are called."""
    lines = {mode: fingerprint(graph) for mode, graph in sorted(program.graphs.items())}
    return hashlib.sha256(repr(lines).encode()).hexdigest()


def _state(program: Program) -> dict[str, torch.Tensor]:
    # keep_vars: the tensors themselves, and not views made for this call, can be remembered.
    state = program.state_dict(keep_vars=True)
    return {key: x for key, x in state.items() if isinstance(x, torch.Tensor)}


def _join(digests: Mapping[str, str]) -> str:
    text = "\n".join(f"{key} {digest}" for key, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
