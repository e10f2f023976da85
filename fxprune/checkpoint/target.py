"""Where a pruned checkpoint goes: all files are written aside and moved when they are complete."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fxprune.checkpoint_files import INDEX, SUFFIX, Checkpoint
from fxprune.errors import FormatError
from fxprune.writing import PathLike, can_swap, swapped

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Target", "target_of"]

_KEPT = "kept"


@dataclass(frozen=True)
class Target:
    """The files to write.

    Args:
        place: the file, or the folder.
        names: the files' names, the index last.
        folder: whether `place` is a folder.
        size: how many bytes they have.
    """

    place: Path
    names: tuple[str, ...]
    folder: bool
    size: int

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in order."""
        return tuple(self.place / name for name in self.names) if self.folder else (self.place,)

    @contextmanager
    def replacing(self) -> Generator[Path]:
        """Give a temporary folder, and move what is in it to its place if the block does not raise.

        Raises:
            FormatError: the disk is full, or a file cannot be written.
        """
        parent = self.place.resolve().parent
        for folder in (self.place, parent):
            _clean(folder, self.place.name)
        # Beside the folder it can be exchanged with it, within it is on the folder's disk.
        beside = self.place if self.place.is_dir() and not can_swap(self.place) else parent
        aside = beside / f"{_prefix(self.place.name)}{secrets.token_hex(6)}"
        try:
            aside.mkdir()
            with _locked(aside):
                yield aside
                self._move(aside)
        except OSError as error:
            text = f"{error.strerror or error}; {self.size:,} bytes are needed"
            raise FormatError(f"{self.place}: cannot be written: {text}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _move(self, aside: Path) -> None:
        if not self.folder:
            os.replace(aside / self.names[0], self.place)
            return
        if not self.place.exists():
            os.replace(aside, self.place)
            return
        if swapped(aside, self.place):
            return
        kept = aside / _KEPT
        kept.mkdir()
        with ExitStack() as undo:
            # The old index goes first and the new one comes last: a mixture has none.
            for name in reversed(self.names):
                if (self.place / name).exists():
                    undo.callback(_put_back, kept / name, self.place / name)
                    os.replace(self.place / name, kept / name)
            for name in self.names:
                undo.callback((self.place / name).unlink, missing_ok=True)
                os.replace(aside / name, self.place / name)
            undo.pop_all()


def target_of(source: Checkpoint, out: PathLike) -> Target:
    """Check, before the work, where a checkpoint is to be written.

    Args:
        source: what is pruned; never written to.
        out: a file for a file; for an index a folder, which is made, or an index in a folder.

    Raises:
        FormatError: it is of the wrong kind, cannot be written, or is the source itself.
    """
    place = Path(out)
    names = tuple(shard.path.name for shard in source.shards)
    size = source.size + len(source.index or b"")
    if source.index is None:
        if place.is_dir() or not place.name:
            raise FormatError(f"{place}: this is a folder; give the path of the file to write")
        if place.suffix != SUFFIX:
            raise FormatError(f"{place}: a checkpoint's file ends in {SUFFIX}; name it so")
        target = Target(place, (place.name,), False, size)
    else:
        index = source.path.name
        if place.name.endswith(INDEX):
            place, index = place.parent, place.name
        target = Target(place, (*names, index), True, size)
        if place.exists() and not place.is_dir():
            raise FormatError(f"{place}: this is a file; give the path of a folder to write into")
    _check_paths(target, source)
    return target


def _check_paths(target: Target, source: Checkpoint) -> None:
    parent = target.place.parent
    if not parent.is_dir():
        raise FormatError(f"{target.place}: the folder {parent} does not exist; make it first")
    beside = target.place if target.place.is_dir() else parent
    if not os.access(beside, os.W_OK):
        raise FormatError(f"{target.place}: {beside} cannot be written to; give another place")
    own = [source.path, *(shard.path for shard in source.shards)]
    for path in target.paths:
        if not path.exists():
            continue
        if not path.is_file():
            raise FormatError(f"{path}: this is no regular file; give another place")
        if any(os.path.samefile(path, other) for other in own):
            raise FormatError(
                f"{path}: this is the checkpoint that is pruned; give another place, so that it "
                "stays whole if the run is interrupted"
            )


def _prefix(name: str) -> str:
    return f".{name}.fxprune-"


def _clean(beside: Path, name: str) -> None:
    """Remove what a killed run left; what another run is using is locked."""
    lefts: list[Path] = []
    with contextlib.suppress(OSError):  # no folder, or one that cannot be listed
        lefts = [left for left in beside.iterdir() if left.name.startswith(_prefix(name))]
    for left in lefts:
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold the lock of a folder; the system takes it back from a process that is killed.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _put_back(kept: Path, old: Path) -> None:
    if kept.exists():
        os.replace(kept, old)
