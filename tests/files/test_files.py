"""Files: what is written loads elsewhere, all or nothing is written, and nothing read is run."""

from __future__ import annotations

import copy
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.utils import _pytree as pytree

import fxprune
from fxprune.errors import FormatError, FxpruneError, PassTypeError
from fxprune.files import formats
from fxprune.files.writers import export, read_weights
from fxprune.program.program import Program
from fxprune.support import writing
from fxprune.support.writing import replacing, replacing_folder, write_text
from fxprune.testing.comparing import difference, is_same
from tests.models.zoo import ZOO
from tests.tools.batches import with_batch
from tests.tools.capture_helpers import program_of
from tests.tools.profiles import thorough_but

MODELS = ["lenet", "stochastic_depth", "aux_head", "lstm", "kwargs_dict", "tied_embedding"]


def small() -> Program:
    return fxprune.capture(nn.Linear(3, 2), (torch.zeros(4, 3),))


def seeded(model: Any, args: Any, kwargs: Any) -> Any:
    torch.manual_seed(0)
    return model(*args, **kwargs)


# .pt2


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_pt2_loads_back_with_the_outputs_of_its_mode_at_any_batch(
    name: str, mode: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, args, kwargs = ZOO[name]()
    program = program_of(name).train(mode == "train")
    before = copy.deepcopy(program.state_dict())
    export(program, tmp_path / "net.pt2")
    assert is_same(program.state_dict(), before)
    assert capfd.readouterr() == ("", "")
    loaded = torch.export.load(tmp_path / "net.pt2")
    assert set(loaded.state_dict) == set(before)
    for batch in (1, 4, 7):
        inputs = with_batch(args, kwargs, batch)
        fresh = copy.deepcopy(program)
        assert difference(seeded(loaded.module(), *inputs), seeded(fresh, *inputs)) is None


@pytest.mark.smoke
def test_pt2_of_a_masked_program_keeps_masks_and_originals(tmp_path: Path) -> None:
    rule = {"select": "fc*.weight", "method": "l1_unstructured", "amount": 0.5}
    masked = fxprune.prune(program_of("lenet"), {"rule": [rule]}).eval()
    loaded = torch.export.load(export(masked, tmp_path / "net.pt2"))
    assert {"fc1.weight_orig", "fc1.weight_mask"} <= set(loaded.state_dict)
    _, args, _ = ZOO["lenet"]()
    assert is_same(loaded.module()(*args), masked(*args))


def test_pt2_of_a_static_program_takes_its_batch_only(tmp_path: Path) -> None:
    model, args, _ = ZOO["lenet"]()
    program = fxprune.capture(model, args, batch=None)
    loaded = torch.export.load(export(program, tmp_path / "net.pt2"))
    assert is_same(loaded.module()(*args), program(*args))
    with pytest.raises(AssertionError, match="Guard failed"):
        loaded.module()(*with_batch(args, {}, 7)[0])


# .safetensors


@pytest.mark.parametrize("name", [*MODELS, "buffers", "residual_cnn"])
def test_safetensors_loads_strictly_into_the_source_class(name: str, tmp_path: Path) -> None:
    model, args, kwargs = ZOO[name](seed=0)
    path = export(program_of(name), tmp_path / "net.safetensors")
    other, _, _ = ZOO[name](seed=1)
    other.load_state_dict(load_file(path), strict=True)
    assert difference(seeded(other, args, kwargs), seeded(model, args, kwargs)) is None
    assert is_same(read_weights(path), load_file(path))


def test_safetensors_of_a_masked_program_loads_into_a_model_that_torch_pruned(
    tmp_path: Path,
) -> None:
    rule = {"select": "conv1.weight", "method": "l1_unstructured", "amount": 0.5}
    masked = fxprune.prune(program_of("lenet"), {"rule": [rule]})
    path = export(masked, tmp_path / "net.safetensors")
    other, args, _ = ZOO["lenet"](seed=1)
    torch_prune.identity(other.get_submodule("conv1"), "weight")
    other.load_state_dict(load_file(path), strict=True)
    assert is_same(other(*args), masked(*args))


def test_safetensors_takes_weights_that_are_views(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.arange(12.0).view(3, 4).t())
            self.second = nn.Parameter(torch.zeros(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.first @ self.second

    program = fxprune.capture(Views(), (torch.ones(2, 4),), batch=None)
    program.get_parameter("second").data = program.get_parameter("first").data.t()[:, 1:3]
    found = load_file(export(program, tmp_path / "net.safetensors"))
    assert all(is_same(found[key], value) for key, value in program.state_dict().items())


# .onnx


@pytest.mark.parametrize(
    "name", thorough_but(["aux_head"], ["lenet", "aux_head", "kwargs_dict", "embedding_bag"])
)
def test_onnx_runs_in_onnxruntime_at_any_batch(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, args, kwargs = ZOO[name]()
    program = program_of(name).eval()
    path = export(program, tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == ["net.onnx"]
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {x.shape[0] for x in session.get_inputs()} == {"batch"}
    for batch in (2, 5):
        inputs = with_batch(args, kwargs, batch)
        leaves = pytree.tree_leaves(inputs)
        pairs = zip(session.get_inputs(), leaves, strict=True)
        found: Any = session.run(None, {x.name: leaf.numpy() for x, leaf in pairs})
        wanted = pytree.tree_leaves(program(*inputs[0], **inputs[1]))
        for a, b in zip(found, wanted, strict=True):
            # Another library's float32 kernels: sums of some hundred numbers near 1 in another
            # order, each addition off by up to 6e-8.
            torch.testing.assert_close(torch.from_numpy(a), b.detach(), rtol=1e-5, atol=1e-5)


def test_onnx_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(FormatError, match=r"pip install fxprune\[onnx\]"):
        export(small(), tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []


def test_onnx_refuses_weights_that_one_file_cannot_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(formats, "_MOST_ONNX_BYTES", 31)
    with pytest.raises(FormatError, match=r"export to \.pt2 or \.safetensors"):
        export(small(), tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []


# All or nothing


@pytest.mark.parametrize("error", [ValueError("broken\nmore"), OSError(28, "No space left")])
@pytest.mark.parametrize("suffix", [".pt2", ".safetensors", ".onnx", ".fxp"])
def test_a_failing_writer_leaves_the_earlier_file(
    suffix: str, error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"earlier")
    _fail_with(error, suffix, monkeypatch)
    with pytest.raises(FormatError) as caught:
        export(small(), path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith(("broken", "No space left"))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"earlier"


def test_an_interrupt_leaves_the_earlier_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"earlier")
    _fail_with(KeyboardInterrupt(), ".pt2", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        export(small(), path)
    assert os.listdir(tmp_path) == ["net.pt2"]
    assert path.read_bytes() == b"earlier"


def _fail_with(error: BaseException, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(program: Program, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setitem(formats.WRITERS, suffix, fail)  # pyright: ignore[reportArgumentType]


def test_export_replaces_an_earlier_file_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"earlier")
    path.chmod(0o640)
    assert export(small(), path) == path
    assert set(load_file(path)) == {"weight", "bias"}
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "any").write_bytes(b"")
    path = export(small(), tmp_path / "net.safetensors")
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    assert set(load_file(export(small(), tmp_path / "NET.SafeTensors"))) == {"weight", "bias"}


@pytest.mark.parametrize("name", ["net.fx", "net", "net.pt", "pt2"])
def test_unknown_formats_are_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"there are \.pt2, \.safetensors, \.onnx"):
        export(small(), tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_places_that_no_file_can_be_written_to_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(FormatError, match="this is a folder; give the path of a file"):
        export(small(), tmp_path / "folder.pt2")
    with pytest.raises(FormatError, match="does not exist; make it first"):
        export(small(), tmp_path / "missing" / "net.pt2")
    os.mkfifo(tmp_path / "pipe.pt2")
    with pytest.raises(FormatError, match="no regular file"):
        export(small(), tmp_path / "pipe.pt2")

    def refuse(self: Path, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(FormatError, match=r"net\.pt2: cannot be written: Permission denied"):
        export(small(), tmp_path / "net.pt2")
    assert sorted(os.listdir(tmp_path)) == ["folder.pt2", "pipe.pt2"]


def test_export_takes_programs_only(tmp_path: Path) -> None:
    with pytest.raises(PassTypeError, match=r"not Linear; call fxprune\.capture first"):
        export(nn.Linear(2, 2), tmp_path / "net.pt2")  # pyright: ignore[reportArgumentType]


def test_text_is_written_in_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "ü\n")
    assert (tmp_path / "a.json").read_bytes() == "ü\n".encode()
    with pytest.raises(FormatError, match="does not exist"):
        write_text(tmp_path / "no" / "a.json", "")


def test_replacing_leaves_nothing_of_a_block_that_raises(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert os.listdir(tmp_path) == []


# Folders


def test_a_new_folder_comes_whole_or_not_at_all(tmp_path: Path) -> None:
    def write() -> None:
        with replacing_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert os.listdir(tmp_path) == []
    with replacing_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "whole"


def test_files_of_an_earlier_folder_are_replaced_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("earlier")
    (tmp_path / "mine").write_text("mine")
    with replacing_folder(tmp_path) as folder:
        for name in ("a", "b"):
            (folder / name).write_text("later")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a": "later",
        "b": "later",
        "mine": "mine",
    }


def test_the_current_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with replacing_folder(".") as folder:
        (folder / "a").write_text("whole")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("links", "failing"), [*((True, n) for n in range(4)), *((False, n) for n in range(6))]
)
def test_a_move_that_fails_takes_the_earlier_ones_back(
    links: bool, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "c"):
        (tmp_path / name).write_text(f"earlier {name}")
    calls: list[Any] = []
    move = os.replace

    def fails_once(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == failing + 1:
            raise OSError(5, "Input/output error")
        move(source, target)

    def has_no_links(source: Any, target: Any, **_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "replace", fails_once)
    monkeypatch.setattr(writing, "swap", lambda a, b: False)
    if not links:
        monkeypatch.setattr(os, "link", has_no_links)
    written: list[str] = []
    try:
        with replacing_folder(tmp_path) as folder:
            for name in ("a", "b", "c"):
                (folder / name).write_text("later")
        written = ["later"]
    except FormatError as error:
        assert str(error) == f"{tmp_path}: cannot be written: Input/output error"  # noqa: PT017
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    # One move a file; where the disk has no links, another for each that was there before.
    if failing == (3 if links else 5):
        assert written == ["later"]
        assert found == dict.fromkeys("abc", "later")
    else:
        assert written == []
        assert found == {"a": "earlier a", "c": "earlier c"}


def test_folders_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FormatError, match="this is a file; give the path of a folder"):
        _write_into(tmp_path / "file")
    with pytest.raises(FormatError, match="does not exist; make it first"):
        _write_into(tmp_path / "missing" / "out")
    (tmp_path / "out" / "a").mkdir(parents=True)
    with pytest.raises(FormatError, match="this is a folder, where a file goes"):
        _write_into(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["file", "out"]
    assert os.listdir(tmp_path / "out") == ["a"]


def test_a_folder_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FormatError, match="cannot be written to; give another one"):
        _write_into(tmp_path / "out")


def _write_into(path: Path) -> None:
    with replacing_folder(path) as folder:
        (folder / "a").write_text("later")


# Weights that are read


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_state_dicts_are_read(suffix: str, tmp_path: Path) -> None:
    state = nn.BatchNorm1d(3).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    found = read_weights(path)
    assert type(found) is dict
    assert set(found) == set(state)
    assert all(is_same(found[key], value) for key, value in state.items())


def test_old_pickles_are_read(tmp_path: Path) -> None:
    state = nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert is_same(read_weights(tmp_path / "old.pt"), dict(state))


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch", "inside"])
def test_a_hostile_pickle_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    path, proof = tmp_path / "weights.pt", tmp_path / "ran"
    hostile = Hostile(proof)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(hostile))
    elif kind == "inside":
        torch.save({"weight": torch.ones(2), "bias": hostile}, path)
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(FormatError, match="nothing in it was run") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not proof.exists()


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", pickle.dumps(()))
        archive.writestr("script/data.pkl", pickle.dumps({}))
        archive.writestr("script/version", "3\n")
    with pytest.raises(FormatError, match="nothing in it was run"):
        read_weights(tmp_path / "script.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1])
def test_files_that_are_cut_short_are_refused(keep: int, suffix: str, tmp_path: Path) -> None:
    state, path = {"weight": torch.ones(64)}, tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"hello", b"\x00" * 64, b"\xff" * 64, b"PK\x03\x04" + b"a" * 64]
)
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_files_of_another_kind_are_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="damaged or holds other things than tensors"):
        read_weights(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2), "this holds a Tensor, not a state dict"),
        ([torch.ones(2)], "this holds a list, not a state dict"),
        ({}, "it is empty"),
        ({"epoch": 3, "weight": torch.ones(2)}, "'epoch' is a int"),
        ({"model": {"weight": torch.ones(2)}}, "'model' is a dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(value: Any, message: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(FormatError, match=message):
        read_weights(tmp_path / "weights.pt")


def test_files_that_are_not_there_or_not_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"does not exist; give the path of a \.pt file"):
        read_weights(tmp_path / "weights.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(FormatError, match="this is not a file"):
        read_weights(tmp_path / "folder.pt")
    with pytest.raises(FormatError, match=r"read from \.safetensors, \.pt, \.pth, \.bin files"):
        read_weights(tmp_path / "weights.npz")


def test_every_refusal_is_one_of_ours() -> None:
    assert issubclass(FormatError, FxpruneError)
    assert issubclass(FormatError, ValueError)
