"""Kill processes that write, at random moments, and look at what they left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from tests.kills.writers import WRITERS, Version, Writer, versions

_LEFT = (".fxprune-", ".tmp")  # this library's, and safetensors' own


@dataclass
class Outcome:
    """What came of the kills.

    Args:
        kills: how many there were, by target.
        torn: what was not whole, in words.
        leftovers: how many temporary files and folders were left, all of them by their names.
        changed: how many kills came after the process had written the other version.
    """

    kills: dict[str, int] = field(default_factory=dict[str, int])
    torn: list[str] = field(default_factory=list[str])
    leftovers: int = 0
    changed: int = 0


def kill_writers(
    count: int, folder: Path, *, seed: int = 0, writers: Sequence[Writer] = WRITERS
) -> Outcome:
    """Kill processes that write the versions in turn, each after a random time.

    Args:
        count: of kills.
        folder: an empty one.
        seed: of the times.
        writers: taken in turn.
    """
    chance, outcome, pair = random.Random(seed), Outcome(), versions()
    seconds: dict[str, float] = {}
    for writer in writers:
        seconds[writer.target] = _prepared(writer, pair, folder / writer.target)
    for _, writer in zip(range(count), cycle(writers), strict=False):
        place = folder / writer.target
        target = place / writer.target
        before = writer.read(target)
        _killed(writer, (pair[1 - before], pair[before]), target, chance, seconds[writer.target])
        outcome.kills[writer.target] = outcome.kills.get(writer.target, 0) + 1
        try:
            outcome.changed += writer.read(target) != before
        except Exception as error:  # noqa: BLE001 - a torn file raises many kinds
            outcome.torn.append(f"{writer.target}: {type(error).__name__}: {error}")
            shutil.rmtree(place)
            _prepared(writer, pair, place)
        _swept(writer, place, outcome)
    return outcome


def _prepared(writer: Writer, pair: tuple[Version, Version], place: Path) -> float:
    """Write the first version; return how long the second takes."""
    place.mkdir()
    target = place / writer.target
    writer.write(pair[0], target)
    if target.is_dir():
        (target / "kept.txt").write_text("mine", encoding="utf-8")
    start = time.perf_counter()
    writer.write(pair[1], target)
    return time.perf_counter() - start


def _killed(
    writer: Writer, pair: Sequence[Version], target: Path, chance: random.Random, seconds: float
) -> None:
    """Let a child write in a loop, and kill it."""
    child = os.fork()
    if child == 0:
        try:
            for version in cycle(pair):
                writer.write(version, target)
        finally:
            os._exit(1)
    time.sleep(chance.uniform(0, 2.5 * seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{writer.target}: the writer ended by itself"


def _swept(writer: Writer, place: Path, outcome: Outcome) -> None:
    """Count what was left behind, and remove it."""
    own = {writer.target, "net.safetensors"} if writer.target == "net.py" else {writer.target}
    folders = [place, place / writer.target] if (place / writer.target).is_dir() else [place]
    for folder in folders:
        for path in folder.iterdir():
            if path.name.startswith(_LEFT) or _LEFT[0] in path.name:
                outcome.leftovers += 1
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif folder == place and path.name not in own and path.name != "__pycache__":
                outcome.torn.append(f"{writer.target}: {path.name} is left")
                path.unlink()
