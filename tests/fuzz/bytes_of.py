"""Bytes and texts that have gone wrong: good ones with parts cut out, doubled, or replaced."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

_WORDS = (
    *(b"\x00", b"\xff" * 8, b"\x80\x04", b"PK\x03\x04", b"[" * 3000, b'{"a":' * 2000),
    *(b"\xed\xa0\x80", b"1e999", b"NaN", b"-Infinity", b"9" * 5000, b"null", b"\xe2\x80\xae"),
    *(b"\r\n", b"'''", b'"""'),
    *(b"cos\nsystem\n(S'touch %s'\ntR.", b"__import__('os').system('touch %s')", b"#", b"=", b"."),
)  # fmt: skip
_TEXTS = (
    *("", "*", "**", "[", "[!", "]", "?", "\0", "\u202e", "\ud800", "e\u0301", "a" * 300),
    *("\U0001f600", "conv1.weight", "1", "NaN", "../../etc/passwd", "/dev/zero", "/dev/stdin"),
    *("%s%n", "${HOME}"),
    *("(a+)+$", "(?:a|a)*b", "*a" * 40 + "b", "a" * 3000, "(" * 500, "a{9999999}", "[a-", "\\"),
    *("l1_unstructured", "os:system", "builtins:eval", "__import__('os')", "weight", "linear"),
)  # fmt: skip
_NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.5, 1e308, float("inf")),
    *(float("nan"), True, False, None),
)


def odd_text(chance: random.Random) -> str:
    """A text that some part may not expect."""
    if chance.random() < 0.5:
        return chance.choice(_TEXTS)
    letters = "abcW_*?[](){}|.,:=!'\"\\\n\t 019#~^$+-\0\u00e9"
    return "".join(chance.choices(letters, k=chance.choice((1, 3, 10, 60))))


def odd_value(chance: random.Random, depth: int = 3) -> Any:
    """A value that JSON or TOML can hold, or nearly."""
    kind = chance.randrange(4 if depth else 2)
    if kind == 0:
        return chance.choice(_NUMBERS)
    if kind == 1:
        return odd_text(chance)
    count = chance.choice((0, 1, 2, 5))
    if kind == 2:
        return [odd_value(chance, depth - 1) for _ in range(count)]
    return {odd_text(chance): odd_value(chance, depth - 1) for _ in range(count)}


def broken_bytes(raw: bytes, chance: random.Random) -> bytes:
    """Bytes with one to four parts of them changed."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(raw) + 1)
        end = min(len(raw), start + chance.choice((0, 1, 2, 8, 100, 5000)))
        part = chance.choice(
            (
                b"",
                chance.choice(_WORDS),
                chance.randbytes(chance.choice((1, 4, 16))),
                raw[start:end] * 2,
                bytes([raw[start] ^ (1 << chance.randrange(8))]) if start < len(raw) else b"",
            )
        )
        raw = raw[:start] + part + raw[end:]
        if chance.random() < 0.05:
            raw = raw[: chance.randrange(len(raw) + 1)]
    return raw


def broken_data(value: Any, chance: random.Random) -> Any:
    """Data of JSON's kind with one to three of its parts changed."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.randint(1, 3)):
        value = _changed(value, chance, chance.randint(0, 6))
    return value


def _changed(value: Any, chance: random.Random, depth: int) -> Any:
    if depth and isinstance(value, dict) and value:
        key = chance.choice(list(value))
        act = chance.random()
        if act < 0.08:
            return {name: item for name, item in value.items() if name != key}
        if act < 0.16:
            return {**value, odd_text(chance): value[key]}
        return {**value, key: _changed(value[key], chance, depth - 1)}
    if depth and isinstance(value, list) and value:
        at = chance.randrange(len(value))
        act = chance.random()
        if act < 0.08:
            return [*value[:at], *value[at + 1 :]]
        if act < 0.16:
            return [*value, *value[at:]]
        return [*value[:at], _changed(value[at], chance, depth - 1), *value[at + 1 :]]
    return odd_value(chance)


def with_header(header: Any, data: bytes, chance: random.Random) -> bytes:
    """A safetensors file; now and then its header's size is a lie."""
    head = json.dumps(header).encode("utf-8", "surrogatepass")
    size = len(head)
    if chance.random() < 0.1:
        size = chance.choice((0, 1, size - 1, size + 1, 2**32, 2**62, 2**63, 2**64 - 1))
    return struct.pack("<Q", size & (2**64 - 1)) + head + data
