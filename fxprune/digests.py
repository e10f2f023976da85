"""Digests of a Program's graphs and tensors: SHA-256, each tensor hashed once while it lives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from fxprune.graphs import fingerprint
from fxprune.program import Program

__all__ = ["Digests", "digest_of", "graphs_digest", "state_digest"]


class Digests:
    """Remembers the digest of each tensor for as long as it lives and is not written to."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()

    def state(self, program: Program) -> str:
        """Return the digest of all persistent tensors of a Program, by their keys."""
        return _joined({key: self._of(x) for key, x in _state(program).items()})

    def rewritten(self, program: Program) -> Iterator[str]:
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
    """Return the SHA-256 of a tensor's shape, dtype and values, wherever they are stored.

    Example:
        >>> digest_of(torch.ones(2))[:8] == digest_of(torch.ones(4)[::2])[:8]
        True
    """
    found = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if not tensor.is_meta:
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        # reshape: a tensor without dimensions cannot be viewed as bytes.
        content: Any = plain.reshape(-1).view(torch.uint8).numpy()
        found.update(content)
    return found.hexdigest()


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the digest of tensors by key, as `Digests.state` gives it for a Program.

    Args:
        state: a state dict; what is no tensor in it is left out.
    """
    tensors = {key: x for key, x in state.items() if isinstance(x, torch.Tensor)}
    return _joined({key: digest_of(x) for key, x in tensors.items()})


def graphs_digest(program: Program) -> str:
    """Return the digest of what the graphs compute, whatever their nodes are called."""
    lines = {mode: fingerprint(graph) for mode, graph in _graphs(program)}
    return hashlib.sha256(repr(lines).encode()).hexdigest()


def _graphs(program: Program) -> list[tuple[str, Any]]:
    return sorted(program.graphs.items())


def _state(program: Program) -> dict[str, torch.Tensor]:
    # keep_vars: the tensors themselves, and not views made for this call, can be remembered.
    state = program.state_dict(keep_vars=True)
    return {key: x for key, x in state.items() if isinstance(x, torch.Tensor)}


def _joined(digests: Mapping[str, str]) -> str:
    text = "\n".join(f"{key} {digest}" for key, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
