"""Hostile places and moments: full disks, read-only ones, kills, two writers, Ctrl-C."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import functional as prune
from fxprune.errors import FormatError, FxpruneError
from fxprune.files.masks import read_masks
from fxprune.files.pt2 import load_pt2
from fxprune.files.writers import read_weights
from fxprune.rewrite.rewriter import Rewriter
from fxprune.support import writing
from fxprune.support.writing import replacing_folder, sink
from fxprune.testing.comparing import is_same
from tests.fuzz import inputs, run
from tests.fuzz.run import fuzz
from tests.kills.run import kill_writers
from tests.kills.writers import WRITERS, Version, Writer, versions
from tests.tools.profiles import thorough_but

RULE = {"select": "*.weight", "method": "l1_unstructured", "amount": 0.5}


@pytest.fixture(scope="module")
def pair() -> tuple[Version, Version]:
    return versions()


def mounted(folder: Path, kind: str, options: str) -> bool:
    """Mount something there; False where this process may not."""
    done = subprocess.run(
        ["mount", *kind.split(), *options.split(), str(folder)], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        there = mounted(folder, "-t tmpfs", "-o size=64k tmpfs")
    except FileNotFoundError:
        there = False
    if not there:
        pytest.skip("this process may not mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Generator[Path]:
    """A folder with an earlier file in it, on a disk that is mounted read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    for writer in WRITERS:
        if writer.target != "out":
            (folder / writer.target).write_bytes(b"earlier")
    try:
        there = mounted(folder, "--bind -o ro", str(folder))
    except FileNotFoundError:
        there = False
    if not there:
        pytest.skip("this process may not mount a folder")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def refused(writer: Writer, version: Version, target: Path) -> str:
    with pytest.raises(FormatError) as caught:
        writer.write(version, target)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BIG = [writer for writer in WRITERS if writer.target not in ("plan.json", "schema.json")]


@pytest.mark.parametrize("writer", BIG, ids=lambda writer: writer.target)
def test_a_full_disk_is_an_error_and_leaves_what_was_there(
    writer: Writer, pair: tuple[Version, Version], small_disk: Path
) -> None:
    target = small_disk / writer.target
    if writer.target != "out":
        target.write_bytes(b"earlier")
    before = sorted(os.listdir(small_disk))
    assert "cannot be written: " in refused(writer, pair[0], target)
    assert sorted(os.listdir(small_disk)) == before
    if writer.target != "out":
        assert target.read_bytes() == b"earlier"


@pytest.mark.parametrize("writer", BIG, ids=lambda writer: writer.target)
def test_a_limit_on_the_size_of_files_is_an_error(
    writer: Writer, pair: tuple[Version, Version], tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert "cannot be written: " in refused(writer, pair[0], tmp_path / writer.target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.target)
def test_a_read_only_disk_is_an_error(
    writer: Writer, pair: tuple[Version, Version], read_only: Path
) -> None:
    names = sorted(os.listdir(read_only))
    message = refused(writer, pair[0], read_only / writer.target)
    assert "cannot be written" in message
    assert sorted(os.listdir(read_only)) == names
    assert all((read_only / name).read_bytes() == b"earlier" for name in names)


def test_a_file_that_fails_once_takes_the_rest_and_then_says_so(tmp_path: Path) -> None:
    class Full(io.FileIO):
        def write(self, data: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(error: type[Exception]) -> None:
        with Full(tmp_path / "a", "w") as full, sink(tmp_path / "a") as file:
            file.file = full  # pyright: ignore
            assert file.write(b"abc") == 3
            assert file.write(b"") == 0
            if error is RuntimeError:
                raise RuntimeError("what the writer made of it")

    for kind in (OSError, RuntimeError):
        with pytest.raises(OSError, match="No space left"):
            write(kind)


def test_other_errors_in_a_sink_are_raised_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sink(tmp_path / "a"):
        raise ZeroDivisionError


# Kills


@pytest.mark.thorough  # 44 processes
def test_kills_at_random_moments_leave_the_old_or_the_new(tmp_path: Path) -> None:
    outcome = kill_writers(4 * len(WRITERS), tmp_path, seed=1)
    assert outcome.torn == []
    assert sum(outcome.kills.values()) == 4 * len(WRITERS)


@pytest.mark.thorough
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.target)
def test_a_kill_before_or_after_each_step_leaves_the_old_or_the_new(
    writer: Writer, pair: tuple[Version, Version], tmp_path: Path
) -> None:
    target = tmp_path / writer.target
    writer.write(pair[0], target)
    if target.is_dir():
        (target / "kept.txt").write_text("mine", encoding="utf-8")
    writer.write(pair[0], target)
    seen: set[int] = set()
    for number in range(60):
        # The second child of each pair dies right after the step, not before it.
        ended = _dies_at(number // 2, number % 2 == 1, writer, pair[1], target)
        found = writer.read(target)
        if writer.target != "net.py":  # two files, one after the other, in a folder of the user's
            seen.add(found)
        if ended:
            break
        if found == 1:
            writer.write(pair[0], target)
    else:
        pytest.fail("the writer takes more steps than were tried")
    assert seen == {0, 1} or writer.target == "net.py"


def _dies_at(step: int, after: bool, writer: Writer, version: Version, target: Path) -> bool:
    """Let a child write and be killed at a step; True where it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            _arm(step, after)
            writer.write(version, target)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def _arm(step: int, after: bool) -> None:
    """Make this process kill itself before or after one of the steps that change folders."""
    count = iter(range(10**6))

    def armed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            due = next(count) == step
            if due and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = call(*args, **kwargs)
            if due:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return run

    for name in ("replace", "link", "mkdir", "chmod", "unlink"):
        setattr(os, name, armed(getattr(os, name)))
    writing.swap = armed(writing.swap)


def test_folders_that_cannot_be_exchanged_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> None:
        with replacing_folder(folder) as temporary:
            (temporary / "a").write_text("later")

    def there(folder: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}

    out = tmp_path / "out"
    for case in ("exchanged", "no such step", "no links", "a subfolder", "the current one"):
        out.mkdir()
        (out / "a").write_text("earlier")
        (out / "mine").write_text("mine")
        inode = out.stat().st_ino
        with monkeypatch.context() as patch:
            if case == "no such step":
                patch.setattr(writing, "swap", lambda a, b: False)
            elif case == "no links":
                patch.setattr(os, "link", _no_links)
            elif case == "a subfolder":
                (out / "sub").mkdir()
            elif case == "the current one":
                patch.chdir(out)
            write(out)
        assert there(out) == {"a": "later", "mine": "mine"}, case
        assert (out.stat().st_ino == inode) is (case != "exchanged"), case
        assert os.listdir(tmp_path) == ["out"]
        if case == "a subfolder":
            (out / "sub").rmdir()
        for path in out.iterdir():
            path.unlink()
        out.rmdir()


def _no_links(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_a_folder_behind_a_link_stays_behind_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("earlier")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").chmod(0o750)
    with replacing_folder(tmp_path / "link") as temporary:
        (temporary / "a").write_text("later")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "later"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o750
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


# Two processes


@pytest.mark.parametrize(
    "target", thorough_but(["out"], ["net.fxp", "masks.pt", "schema.json", "out"])
)
def test_two_processes_write_the_same_target(
    target: str, pair: tuple[Version, Version], tmp_path: Path
) -> None:
    writer = next(each for each in WRITERS if each.target == target)
    path = tmp_path / target
    writer.write(pair[0], path)
    if path.is_dir():
        (path / "kept.txt").write_text("mine", encoding="utf-8")
    children = [_writing(writer, version, path, 5) for version in pair]
    while children:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            children.remove(done)
            assert os.WEXITSTATUS(status) == 0
        if path.is_file():
            assert writer.read(path) in (0, 1)
    assert writer.read(path) in (0, 1)
    assert os.listdir(tmp_path) == [target]


def _writing(writer: Writer, version: Version, path: Path, times: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        for _ in range(times):
            writer.write(version, path)
        os._exit(0)
    finally:
        os._exit(1)


def test_two_that_make_the_same_new_folder_both_succeed(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "out") as first:
        (first / "a").write_text("first")
        with replacing_folder(tmp_path / "out") as second:
            (second / "b").write_text("second")
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"]
    assert os.listdir(tmp_path) == ["out"]


# Places to read from


@pytest.mark.parametrize(
    ("read", "suffix"),
    [
        (fxprune.load, ".fxp"),
        (load_pt2, ".pt2"),
        (read_weights, ".safetensors"),
        (read_weights, ".pt"),
        (read_masks, ".pt"),
        (fxprune.Recipe.load, ".toml"),
        (fxprune.Recipe.load, ".json"),
        (fxprune.Plan.load, ".json"),
    ],
)
def test_places_that_are_no_file_are_refused_at_once(
    read: Callable[[Any], Any], suffix: str, tmp_path: Path
) -> None:
    pipe, folder, loop = (tmp_path / f"{name}{suffix}" for name in ("pipe", "folder", "loop"))
    os.mkfifo(pipe)
    folder.mkdir()
    loop.symlink_to(loop)
    endless = tmp_path / f"endless{suffix}"
    endless.symlink_to("/dev/zero")
    for place in (pipe, folder, loop, endless, tmp_path / f"missing{suffix}"):
        with pytest.raises(FxpruneError):
            read(place)
    with pytest.raises(FxpruneError):
        read(f"{tmp_path}/nul\0{suffix}")


def test_no_message_of_torchs_takes_long(tmp_path: Path) -> None:
    """torch looks through its message, which repeats what the file names, with regexes."""
    for name in ('{"a":' * 20_000, "a." * 50_000, " " * 10**5, "GLOBAL torch." * 10_000):
        (tmp_path / "a.pt").write_bytes(b"\x80\x02c" + name.encode() + b"\nx\n.")
        start = time.process_time()
        with pytest.raises(FormatError, match="nothing in it was run"):
            read_masks(tmp_path / "a.pt")
        assert time.process_time() - start < 2


# Ctrl-C


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("at", range(7))
def test_ctrl_c_during_a_pass_leaves_the_program_as_it_was(at: int, inplace: bool) -> None:
    program = prune.l1_unstructured(_small(), "0.weight", amount=2)
    optimizer = torch.optim.SGD(program.parameters(), 0.1)
    before = {key: value.clone() for key, value in program.state_dict().items()}
    graph, ids = str(program.graph), [id(p) for p in program.parameters()]
    steps = iter(range(100))

    def interrupt(step: str) -> None:
        if next(steps) == at:
            signal.raise_signal(signal.SIGINT)

    recipe = {"rule": [RULE, {**RULE, "amount": 1}]}
    with pytest.raises(KeyboardInterrupt):
        fxprune.prune(program, recipe, inplace=inplace, on_pass=interrupt)
    assert is_same(dict(program.state_dict()), before)
    assert str(program.graph) == graph
    assert [id(p) for p in program.parameters()] == ids
    program(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def test_ctrl_c_in_the_middle_of_a_rewrite_leaves_the_program_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = prune.l1_unstructured(_small(), "0.weight", amount=2)
    before = {key: value.clone() for key, value in program.state_dict().items()}
    graph = str(program.graph)

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGINT)

    for method in ("add_mask", "apply"):
        with monkeypatch.context() as patch:
            patch.setattr(Rewriter, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                fxprune.prune(program, {"rule": [RULE]}, inplace=True)
        assert is_same(dict(program.state_dict()), before)
        assert str(program.graph) == graph


def _small() -> fxprune.Program:
    return fxprune.capture(
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.zeros(2, 4),)
    )


# The fuzzer


def test_broken_inputs_of_every_kind_raise_errors_of_this_library_alone() -> None:
    outcome = fuzz(150, seed=10**6)
    assert outcome.crashes == []
    assert sum(outcome.cases.values()) == 150
    assert outcome.slowest[0] < 10
    assert outcome.grown < 500


@pytest.mark.thorough
def test_the_fuzzer_sees_crashes_hangs_and_code_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(seeds: Any, chance: Any) -> None:
        raise ZeroDivisionError

    def hang(seeds: Any, chance: Any) -> None:
        while True:
            pass

    def make(seeds: Any, chance: Any) -> None:
        seeds.canary.mkdir()

    def act(seeds: Any, chance: Any) -> None:
        subprocess.run(["true"], check=True)

    def refuse(seeds: Any, chance: Any) -> None:
        raise FormatError("as it should")

    monkeypatch.setattr(run, "_LONGEST", 0.2)
    kinds = {"a": crash, "b": hang, "c": make, "d": act, "e": refuse}
    monkeypatch.setattr(run, "KINDS", {**inputs.KINDS, **kinds})
    told = [fuzz(1, only=kind).crashes for kind in kinds]
    assert [len(found) for found in told] == [1, 1, 1, 1, 0]
    assert "ZeroDivisionError" in told[0][0][2]
    assert "_HungError" in told[1][0][2]
    assert "code in the input was run" in told[2][0][2]
    assert "subprocess.Popen" in told[3][0][2]


def test_what_is_written_is_read_again(pair: tuple[Version, Version], tmp_path: Path) -> None:
    for writer in WRITERS:
        target = tmp_path / writer.target
        for version in (*pair, pair[0]):
            writer.write(version, target)
            if target.is_dir():
                (target / "kept.txt").write_text("mine", encoding="utf-8")
            assert writer.read(target) == version.number
