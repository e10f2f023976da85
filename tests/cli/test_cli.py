"""The command line: what it prints and writes, and how it refuses bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fxprune.compiler import build
from fxprune.verification.certificate import Certificate, Failure
from tests.tools import commands
from tests.tools.commands import files, refused, run

NET = """
import torch
from torch import nn

print("a chatty file")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 4 * 4, 3)

    def forward(self, x):
        print("a chatty forward")
        return self.fc(torch.relu(self.conv1(x)).flatten(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(9, 5)
        self.out = nn.Linear(5, 9, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, ids):
        return self.out(self.emb(ids))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.weight if x.sum() > 0 else x


class Stubborn(nn.Module):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


def with_example():
    return Net(), (torch.ones(2, 1, 6, 6),), {}


def with_tensor():
    return Net(), torch.ones(2, 1, 6, 6)


def broken():
    raise KeyError("no weights here")


def leaves():
    raise SystemExit(3)


def needs(size):
    return Net()


def other():
    return "a string"


def nothing():
    return ()


number = 3
made = Net()
"""
RECIPE = f"\nversion = 1\n{commands.RECIPE}"
FILES = ["certificate.json", "model.safetensors", "report.json"]


@pytest.fixture(autouse=True)
def folder(workplace: Path) -> Path:
    """A folder with a model, a recipe and an earlier result, to work in."""
    Path("net.py").write_text(NET)
    Path("recipe.toml").write_text(RECIPE)
    Path("earlier").mkdir()
    for name in FILES:
        Path("earlier", name).write_text("an earlier result")
    return workplace


def compiled(*args: str, model: str = "net.py:with_example", **options: str) -> Any:
    """Run `compile`, into the earlier result unless `out` says otherwise."""
    options = {"recipe": "recipe.toml", "out": "earlier", **options}
    named = [text for key, value in options.items() for text in (f"--{key}", value)]
    return run("compile", model, *named, *args)


# What compile does


@pytest.mark.smoke
def test_compile_writes_and_reports(folder: Path) -> None:
    result = compiled("--input", "1,1,6,6", model="net.py:Net", out="new")
    assert result.exit_code == 0, result.stderr
    assert sorted(os.listdir("new")) == FILES
    state = load_file("new/model.safetensors")
    weights = [state["conv1.weight"], state["fc.weight"]]
    zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert zeros == round(0.5 * total)
    share = float((weights[0] == 0).float().mean())
    for text in (
        f"Sparsity in conv1.weight: {share:.2%}\nGlobal sparsity: {zeros / total:.2%}\n",
        "certificate: same: kept on 8 of 8 trials",
        "wrote new/model.safetensors",
        "\nweights   0.0",
        "select 0.0",
    ):
        assert text in result.stdout
    assert "a chatty" not in result.stdout
    assert json.loads(Path("new/certificate.json").read_text())["ok"]


def test_json_is_all_that_is_printed() -> None:
    result = compiled("--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert list(data) == ["report", "certificate", "seconds", "files"]
    assert data["files"] == [str(Path("earlier", n)) for n in (FILES[1], FILES[2], FILES[0])]
    assert data["certificate"]["ok"]
    assert data["report"]["parameters"][0]["name"] == "conv1.weight"
    assert {"load", "capture", "weights: mask", "finalize", "verify"} <= data["seconds"].keys()


def test_an_earlier_result_is_replaced_and_other_files_stay() -> None:
    Path("earlier", "notes.txt").write_text("mine")
    assert compiled().exit_code == 0
    assert sorted(os.listdir("earlier")) == sorted([*FILES, "notes.txt"])
    assert load_file("earlier/model.safetensors")
    assert Path("earlier", "notes.txt").read_text() == "mine"


def test_a_run_is_repeatable() -> None:
    assert compiled(out="one").exit_code == compiled(out="two").exit_code == 0
    models = [Path(out, "model.safetensors").read_bytes() for out in ("one", "two")]
    assert models[0] == models[1]


def test_a_recipe_without_export_says_so() -> None:
    Path("recipe.toml").write_text(RECIPE.partition("[export]")[0])
    result = compiled(out="new")
    assert sorted(os.listdir("new")) == ["certificate.json", "report.json"]
    assert "no model was written: the recipe has no [export]" in result.stdout


def test_a_failed_check_exits_with_1_and_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = Failure("eval", "args", "output", 0.5, "output differs by up to 0.5")
    certificate = Certificate("same", 0.0, 0, 2, ("eval: args",), 0.5, (failure,))
    monkeypatch.setattr(build, "verify", lambda *args, **options: certificate)
    before = files(folder)
    result = compiled()
    assert result.exit_code == 1
    assert "Error: the compiled program breaks its promise" in result.stderr
    assert "eval mode, args: output differs by up to 0.5" in result.stderr
    assert "Traceback" not in result.output
    assert files(folder) == before


# Where models, inputs and weights come from


@pytest.mark.parametrize("name", ["with_example", "with_tensor"])
def test_a_factory_may_bring_its_inputs(name: str) -> None:
    assert run("inspect", f"net.py:{name}").exit_code == 0


@pytest.mark.parametrize("model", ["net.py:made", "net.py:Net", "./net.py:Net"])
def test_a_model_or_its_class_will_do(model: str) -> None:
    result = run("inspect", model, "--input", "x=2,1,6,6")
    assert result.exit_code == 0, result.stderr
    assert "x: float32[batch, 1, 6, 6]" in result.stdout


def test_models_are_imported_from_the_current_folder(folder: Path) -> None:
    package = folder / "zoo_of_cli"
    package.mkdir()
    package.joinpath("__init__.py").write_text("")
    package.joinpath("nets.py").write_text(NET)
    before = list(sys.path)
    assert run("inspect", "zoo_of_cli.nets:with_example").exit_code == 0
    assert sys.path == before


def test_a_file_imports_what_lies_beside_it(folder: Path) -> None:
    nested = folder / "nested"
    nested.mkdir()
    nested.joinpath("helper_of_cli.py").write_text(NET)
    nested.joinpath("top.py").write_text("from helper_of_cli import with_example")
    assert run("inspect", "nested/top.py:with_example").exit_code == 0
    assert not list(nested.glob("__pycache__/top*"))


def test_options_of_the_command_go_before_the_inputs_of_the_factory() -> None:
    result = run("inspect", "net.py:with_example", "--input", "x=3,1,6,6", "--batch", "none")
    assert "x: float32[3, 1, 6, 6]" in result.stdout


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded(suffix: str) -> None:
    shapes = {"conv1.weight": (4, 1, 3, 3), "conv1.bias": (4,), "fc.bias": (3,)}
    state = {name: torch.full(shape, 2.0) for name, shape in shapes.items()}
    state["fc.weight"] = torch.arange(192.0).view(3, 64)
    path = f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert compiled(out="new", weights=path).exit_code == 0
    written = load_file("new/model.safetensors")
    assert torch.equal(written["conv1.bias"], state["conv1.bias"])
    assert torch.equal(written["fc.weight"][2], state["fc.weight"][2])


def test_one_name_of_a_tied_parameter_will_do() -> None:
    weight = torch.arange(45.0).view(9, 5)
    save_file({"emb.weight": weight}, "tied.safetensors")
    ids = ("--input", "int64:1,7:0..8")
    result = compiled(*ids, model="net.py:Tied", out="new", weights="tied.safetensors")
    assert result.exit_code == 0, result.stderr
    assert torch.equal(load_file("new/model.safetensors")["out.weight"][8], weight[8])


# What inspect shows


def test_inspect_shows_inputs_graphs_parameters_and_ties() -> None:
    result = run("inspect", "net.py:Tied", "--input", "ids=int64:1,7:0..8")
    assert result.exit_code == 0, result.stderr
    assert "Tied: 1 parameters with 45 entries" in result.stdout
    assert "  ids: int64[batch, 7] in 0..8" in result.stdout
    assert "  train and eval: 2 operators" in result.stdout
    assert "emb.weight  9x5    float32  weight of embedding, weight of linear" in result.stdout
    assert "tied: emb.weight = out.weight" in result.stdout


def test_inspect_with_a_recipe_reports_and_writes_nothing(folder: Path) -> None:
    before = files(folder)
    result = run("inspect", "net.py:with_example", "--recipe", "recipe.toml")
    assert result.exit_code == 0, result.stderr
    assert "Global sparsity: 50.00%" in result.stdout
    assert "left conv1.bias: its attribute is bias, not weight" in result.stdout
    assert files(folder) == before


def test_inspect_shows_graphs_that_training_chooses_and_notes() -> None:
    Path("graphs.py").write_text("""
import torch.nn.utils.prune
import fxprune
from tests.models.zoo import ZOO


def hooked():
    model, args, _ = ZOO["attention"]()
    torch.nn.utils.prune.l1_unstructured(model.attention.out_proj, "weight", amount=0.5)
    return model, args


def program():
    model, args, _ = ZOO["aux_head"]()
    return fxprune.capture(model, args)
""")
    result = run("inspect", "graphs.py:program")
    assert result.exit_code == 0, result.stderr
    assert "  train: " in result.stdout
    assert "  eval: " in result.stdout
    assert "  chosen by the training flags of " in result.stdout
    result = run("inspect", "graphs.py:hooked", "--recipe", "recipe.toml")
    assert result.exit_code == 0, result.stderr
    assert "note: " in result.stdout


# Bad input


def edited(old: str, new: str) -> Callable[[], dict[str, str]]:
    def edit() -> dict[str, str]:
        assert old in RECIPE
        Path("recipe.toml").write_text(RECIPE.replace(old, new))
        return {}

    return edit


BAD_RECIPES = {
    "selects nothing": (edited('"weight" }', '"wieght" }'), ["'weights'", "mean 'weight'"]),
    "unknown key": (edited("amount =", "amuont ="), ["recipe.toml", "amuont", "'amount'"]),
    "unknown table": (edited("[finalize]", "[finalise]"), ["finalise", "'finalize'"]),
    "unknown method": (edited("l1_unstr", "l1_unsrt"), ["l1_unsrtuctured", "l1_unstructured"]),
    "share out of range": (edited("0.5", "1.5"), ["amount = 1.5", "between 0.0 and 1.0"]),
    "count out of range": (edited("0.5", "1000"), ["1000", "228"]),
    "not toml": (edited("[finalize]", "[finalize"), ["recipe.toml", "not TOML"]),
    "unknown format": (edited("safetensors", "h5"), ["h5", "safetensors"]),
    "imports": (edited("l1_unstructured", "os:getcwd"), ["os:getcwd", "allow"]),
    "missing": (lambda: {"recipe": "other.toml"}, ["other.toml", "does not exist"]),
    "folder": (lambda: {"recipe": "earlier"}, ["earlier", ".toml"]),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_a_bad_recipe_is_refused(case: str, folder: Path) -> None:
    prepare, told = BAD_RECIPES[case]
    options = prepare()
    before = files(folder)
    message = refused(compiled(**options))
    assert [text for text in told if text not in message] == []
    assert files(folder) == before


BAD_MODELS = {
    "absent.py:Net": ["absent.py", "does not exist"],
    "earlier.py:Net": ["earlier.py", "is not a file"],
    "net.py:Nett": ["no 'Nett'", "mean 'Net'"],
    "net.py:Net.x.y": ["no 'x'"],
    "net.py": ["net.py", "file.py:factory"],
    "net.py:": ["net.py", "file.py:factory"],
    "absent_package.nets:Net": ["absent_package", "package.module:factory"],
    "bad.py:Net": ["bad.py", "SyntaxError", "line 1"],
    "raises.py:Net": ["raises.py", "ZeroDivisionError", "raises.py, line 2"],
    "net.py:broken": ["net.py:broken", "KeyError: 'no weights here'", "net.py, line "],
    "net.py:leaves": ["net.py:leaves", "SystemExit: 3"],
    "net.py:needs": ["net.py:needs", "without arguments", "'size'"],
    "net.py:other": ["returned str", "nn.Module"],
    "net.py:nothing": ["returned", "nn.Module"],
    "net.py:number": ["this is a int", "file.py:factory"],
    "net.py:Stubborn": ["Stubborn", "cannot be copied"],
}


@pytest.mark.parametrize("model", BAD_MODELS)
def test_a_bad_model_is_refused(model: str, folder: Path) -> None:
    Path("bad.py").write_text("class Net(:\n")
    Path("raises.py").write_text("\n1 / 0\n")
    Path("earlier.py").mkdir()
    before = files(folder)
    for result in (compiled(model=model), run("inspect", model)):
        message = refused(result)
        assert [text for text in BAD_MODELS[model] if text not in message] == []
    assert files(folder) == before


BAD_INPUTS: dict[tuple[str, ...], list[str]] = {
    ("--input", "1,1,9,9"): ["Net does not run on float32[1, 1, 9, 9]", "--input"],
    ("--input", "int64:1,1,6,6"): ["int64[1, 1, 6, 6]", "DTYPE"],
    ("--input", "y=1,1,6,6"): ["forward takes (x)", "'x'", "NAME=SHAPE"],
    ("--input", "1,1,6,6", "--input", "3"): ["too many positional", "NAME=SHAPE"],
    ("--input", "1,1,6,6", "--input", "x=3"): ["multiple values for argument 'x'"],
    ("--input", "x=1,1,6,6", "--input", "x=3"): ["'x' again", "once"],
    ("--input", "1,1,6,six"): ["--input 1,1,6,six", "SHAPE"],
    ("--input", "1,-1"): ["--input 1,-1", "SHAPE"],
    ("--input", ""): ["SHAPE"],
    ("--input", "a b=1,3"): ["'a b'", "NAME"],
    ("--input", "=1,3"): ["NAME"],
    ("--input", "float:1,3"): ["'float'", "float32"],
    ("--input", "1:2:3:4"): ["SHAPE"],
    ("--input", "1,3:5..1"): ["5..1", "smaller number first"],
    ("--input", "1,3:a..b"): ["a..b"],
    ("--input", "1,3:0..nan"): ["0..nan"],
    ("--input", "1,3:0..1..2"): ["0..1..2"],
    ("--input", "uint8:1,3:0..300"): ["0..300"],
    ("--input", "int64:1,3:0..1.5"): ["0..1.5"],
    ("--input", "complex64:1,3:0..1"): ["complex"],
    ("--input", "99999999,99999999"): ["too large", "smaller SHAPE"],
    ("--batch", "one"): ["--batch one", "none"],
    ("--batch", "7"): ["batch=7", "no input has that dimension"],
}


@pytest.mark.parametrize("options", BAD_INPUTS, ids=" ".join)
def test_bad_inputs_are_refused(options: tuple[str, ...], folder: Path) -> None:
    before = files(folder)
    message = refused(compiled(*options))
    assert [text for text in BAD_INPUTS[options] if text not in message] == []
    assert files(folder) == before


def test_inputs_that_are_missing_are_named(folder: Path) -> None:
    message = refused(compiled(model="net.py:Net"))
    assert "missing a required argument: 'x'" in message


def test_a_model_that_cannot_be_captured_is_refused(folder: Path) -> None:
    before = files(folder)
    result = compiled("--input", "2,3", model="net.py:Branch")
    assert result.exit_code == 2
    # torch.export itself may print the graph that it got as far as.
    assert "\nError: torch.export cannot take Branch whole: " in result.stderr
    assert "Traceback" not in result.output
    assert files(folder) == before


class Hostile:
    """Unpickled carelessly, makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("hostile",)


def net_state(**changes: Any) -> dict[str, Any]:
    shapes = {"conv1.weight": (4, 1, 3, 3), "conv1.bias": (4,), "fc.weight": (3, 64)}
    state: dict[str, Any] = {name: torch.zeros(shape) for name, shape in shapes.items()}
    changed = {**state, "fc.bias": torch.zeros(3), **changes}
    return {name: value for name, value in changed.items() if value is not None}


def saved(path: str, state: Any) -> str:
    save_file(state, path) if path.endswith(".safetensors") else torch.save(state, path)
    return path


def bytes_in(path: str, data: bytes) -> str:
    Path(path).write_bytes(data)
    return path


BAD_WEIGHTS: dict[str, tuple[Callable[[], str], list[str]]] = {
    "absent": (lambda: "absent.pt", ["absent.pt", "does not exist"]),
    "a folder": (lambda: "earlier", ["earlier", ".safetensors"]),
    "unknown suffix": (lambda: "net.py", ["net.py", ".safetensors"]),
    "missing and unexpected": (
        lambda: saved("w.safetensors", net_state(**{"fc.bias": None, "fc.bais": torch.ones(3)})),
        ["w.safetensors", "missing 'fc.bias'", "unexpected 'fc.bais'", "state_dict()"],
    ),
    "shape": (
        lambda: saved("w.pt", net_state(**{"fc.weight": torch.zeros(3, 65)})),
        ["w.pt", "'fc.weight' has shape (3, 65), the model (3, 64)"],
    ),
    "dtype": (
        lambda: saved("w.pt", net_state(**{"fc.bias": torch.zeros(3, dtype=torch.int8)})),
        ["'fc.bias' is torch.int8, the model torch.float32"],
    ),
    "broken safetensors": (
        lambda: bytes_in("w.safetensors", b"\xff" * 100),
        ["w.safetensors", "damaged"],
    ),
    "broken pickle": (lambda: bytes_in("w.pt", b"\x80\x02" * 50), ["w.pt", "damaged"]),
    "empty": (lambda: bytes_in("w.pt", b""), ["w.pt", "damaged"]),
    "hostile pickle": (
        lambda: saved("w.pt", {**net_state(), "fc.bias": Hostile()}),
        ["w.pt", "nothing in it was run"],
    ),
    "no state dict": (lambda: saved("w.pt", [torch.ones(2)]), ["w.pt", "state_dict()"]),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused(case: str, folder: Path) -> None:
    prepare, told = BAD_WEIGHTS[case]
    path = prepare()
    before = files(folder)
    message = refused(compiled(weights=path))
    assert [text for text in told if text not in message] == []
    assert files(folder) == before
    assert not Path("hostile").exists()


def test_aliases_that_differ_are_refused() -> None:
    state = {"emb.weight": torch.zeros(9, 5), "out.weight": torch.ones(9, 5)}
    path = saved("w.safetensors", state)
    options = ("--input", "int64:1,7:0..8")
    message = refused(compiled(*options, model="net.py:Tied", weights=path))
    assert "'out.weight' and 'emb.weight' are one parameter, but differ in the file" in message


BAD_OUT = {
    "recipe.toml": ["recipe.toml", "is a file", "folder"],
    "recipe.toml/new": ["recipe.toml", "does not exist"],
    "absent/new": ["absent", "does not exist"],
    "x" * 300: ["xxx", "name too long"],
}


@pytest.mark.parametrize("out", BAD_OUT, ids=["file", "in a file", "no parent", "long"])
def test_a_bad_output_folder_is_refused(out: str, folder: Path) -> None:
    before = files(folder)
    message = refused(compiled(out=out)).lower()
    assert [text for text in BAD_OUT[out] if text.lower() not in message] == []
    assert files(folder) == before


def test_a_file_that_a_folder_blocks_is_refused(folder: Path) -> None:
    Path("earlier/model.safetensors").unlink()
    Path("earlier/model.safetensors").mkdir()
    before = files(folder)
    assert "model.safetensors" in refused(compiled())
    assert files(folder) == before


def test_control_characters_are_not_printed() -> None:
    message = refused(compiled(model="\x1b[2J.py:Net"))
    assert "\x1b" not in message
    assert "\\x1b[2J.py" in message


@pytest.mark.parametrize(
    "args",
    [("compile", "net.py:Net"), ("compile",), ("inspect", "net.py:Net", "--recip", "x"), ("x",)],
    ids=["no recipe", "no model", "unknown option", "unknown command"],
)
def test_a_bad_call_is_refused(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr.count("Error: ") == 1
    assert "Traceback" not in result.output


# As a process


def process(*args: str) -> Any:
    command = [sys.executable, "-m", "fxprune", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    # A shell starts background jobs with Ctrl-C ignored, which children would inherit.
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
    finally:
        signal.signal(signal.SIGINT, outer)


def test_a_process_prints_results_and_nothing_else_to_stdout(folder: Path) -> None:
    args = ("net.py:with_example", "--recipe", "recipe.toml", "--out", "new", "--json")
    done = process("compile", *args)
    stdout, stderr = done.communicate(timeout=120)
    assert done.returncode == 0, stderr
    assert json.loads(stdout)["certificate"]["ok"]
    assert set(stderr.splitlines()) == {"a chatty file", "a chatty forward"}
    assert sorted(os.listdir("new")) == FILES


def test_an_interrupt_ends_it_with_130(folder: Path) -> None:
    Path("slow.py").write_text(
        "import time, sys\nsys.stderr.write('ready\\n')\nsys.stderr.flush()\ntime.sleep(100)"
    )
    before = files(folder)
    started = process("inspect", "slow.py:Net")
    assert started.stderr.readline() == "ready\n"
    started.send_signal(signal.SIGINT)
    stdout, stderr = started.communicate(timeout=120)
    assert (started.returncode, stdout, stderr) == (130, "", "Error: interrupted\n")
    assert files(folder) == before


def test_a_terminal_gets_a_table_and_the_steps(folder: Path) -> None:
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fxprune", "inspect", "net.py:with_example"]
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs) as started:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
    assert started.returncode == 0, shown
    assert b" capture" in shown
    assert b"\x1b[1mparameters" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""


# The demo


def test_the_demo_shows_that_it_works(folder: Path) -> None:
    result = run("demo", "--out", "demo")
    assert result.exit_code == 0, result.stderr
    for text in (
        "Sparsity in conv1.weight: ",
        "Global sparsity: 80.60%",
        "4 masks with 38,160 entries: equal bit for bit",
        "outputs for 500 test images: equal bit for bit",
        "finalized against masked: same: kept on 8 of 8 trials",
        "wrote demo/model.pt2",
    ):
        assert text in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    names = ("dense", "pruned", "fine-tuned")
    found = [line.split() for line in result.stdout.splitlines()]
    dense, pruned, tuned = (
        float(words[-1].rstrip("%")) for words in found if words and words[0] in names
    )
    assert dense > 95
    assert pruned < tuned
    assert sorted(os.listdir("demo")) == sorted([*FILES, "model.pt2"])
    state = load_file("demo/model.safetensors")
    assert int((state["conv2.weight"].flatten(1) == 0).all(1).sum()) >= 8


def test_the_demo_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    before = files(folder)
    assert 'pip install "fxprune[demo]"' in refused(run("demo"))
    assert files(folder) == before


def test_a_demo_whose_check_fails_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.cli.demo.run_demo", lambda *args: False)
    result = run("demo")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the masks or the outputs differ")
