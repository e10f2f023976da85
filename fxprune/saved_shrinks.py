"""What a .fxp says of the shrinks that a Program went through."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fxprune.errors import FormatError
from fxprune.footprints import Footprint
from fxprune.shrink_record import AxisMap, Blocked, ShrinkRecord, Stay

__all__ = ["decode_shrink", "encode_shrink"]

Index = Annotated[int, Field(ge=0, lt=2**63)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Map(_Table):
    tensor: str
    axis: Index
    before: Index
    kept: list[Index]


class _Stay(_Table):
    tensor: str
    axis: Index
    count: Index
    reason: str
    node: str | None
    line: str | None


class _Blocked(_Table):
    node: str
    reason: str
    line: str | None
    graph: str


class _Footprint(_Table):
    parameters: Index
    flops: Index
    activations: Index
    layers: dict[str, Index]
    unknown: list[str]

    def plain(self) -> Footprint:
        given = (self.parameters, self.flops, self.activations, self.layers)
        return Footprint(*given, tuple(self.unknown))


class _Shrink(_Table):
    maps: list[_Map]
    stays: list[_Stay]
    blocked: list[_Blocked]
    added: list[str]
    absorbed: list[str]
    removed: list[str]
    folded: list[str]
    notes: list[str]
    round_to: Index
    checked: str
    seconds: dict[str, float]
    again: bool
    before: _Footprint | None
    after: _Footprint | None


def encode_shrink(record: ShrinkRecord) -> dict[str, Any]:
    """Return what a shrink did as data."""
    return _listed(asdict(record))


def decode_shrink(saved: Any) -> ShrinkRecord:
    """Return the record that `encode_shrink` made `saved` of.

    Raises:
        FormatError: it is no record of a shrink.
    """
    try:
        data = _Shrink.model_validate(saved)
    except ValidationError as error:
        raise FormatError(f"shrinks: {str(error.errors()[0]['msg'])[:200]}") from None
    for each in data.maps:
        fits = all(a < b for a, b in zip(each.kept, each.kept[1:], strict=False))
        if not fits or (each.kept and each.kept[-1] >= each.before):
            raise FormatError(
                f"shrinks: the channels kept of {each.tensor[:100]!a} are in disorder"
            )
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in data.model_dump(
            exclude={"maps", "stays", "blocked", "before", "after"}
        ).items()
    }
    return ShrinkRecord(
        maps=tuple(AxisMap(m.tensor, m.axis, m.before, tuple(m.kept)) for m in data.maps),
        stays=tuple(Stay(**stay.model_dump()) for stay in data.stays),
        blocked=tuple(Blocked(**blocked.model_dump()) for blocked in data.blocked),
        before=data.before and data.before.plain(),
        after=data.after and data.after.plain(),
        **plain,
    )


def _listed(value: Any) -> Any:
    """Return data as JSON gives it back: with lists."""
    if isinstance(value, dict):
        return {key: _listed(part) for key, part in value.items()}  # pyright: ignore
    if isinstance(value, (list, tuple)):
        return [_listed(part) for part in value]  # pyright: ignore
    return value
