"""fxprune verify ARTIFACT --against MODEL: a certificate checked again from scratch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from fxprune.cli.app import app
from fxprune.compiler.recheck import read_certificate
from fxprune.errors import FormatError
from fxprune.files.fxp import load, save
from fxprune.verification.certificate import seal_of
from tests.tools.profiles import thorough_but

FACTORIES = """
import torch
from torch import nn
from torch.nn.utils import prune

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.emb.weight

    def forward(self, ids):
        return self.out(torch.relu(self.norm(self.emb(ids))))

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.sigmoid(self.first(x)))

def wide():
    return Wide(), (torch.ones(2, 4),)

def wider():
    net = Wide()
    with torch.no_grad():
        net.first.bias[0] += 1.0
        net.first.weight[:4] *= 9.0
    return net, (torch.ones(2, 4),)

def make():
    return Net(), (torch.arange(6),)

def hooked():
    net = Net()
    prune.l1_unstructured(net.out, "bias", 3)
    return net, (torch.arange(6),)

def other():
    net = Net()
    with torch.no_grad():
        net.out.bias[1] += 1.0
    return net, (torch.arange(6),)
"""
RECIPE = """
version = 1
[[rule]]
select = "*.weight"
method = "{method}"
amount = 0.5
{finalize}
[export]
formats = ["fxp", "pt2", "safetensors"]
"""

CUT = """
version = 1
[[rule]]
select = "first.weight"
{rule}
dim = 0
amount = 3
{finalize}
[shrink]
[export]
formats = ["fxp", "pt2", "safetensors"]
"""
NORMS = 'method = "ln_structured"\nn = 2'


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(FACTORIES)


def command(*arguments: str) -> Result:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def compiled(method: str = "l1_unstructured", finalize: str = "[finalize]", net: str = "make"):
    Path("recipe.toml").write_text(RECIPE.format(method=method, finalize=finalize))
    result = command("compile", f"nets.py:{net}", "--recipe", "recipe.toml", "--out", "out")
    assert result.exit_code == 0, result.output


def shrunk(rule: str = NORMS, finalize: str = "[finalize]") -> None:
    Path("recipe.toml").write_text(CUT.format(rule=rule, finalize=finalize))
    result = command("compile", "nets.py:wide", "--recipe", "recipe.toml", "--out", "out")
    assert result.exit_code == 0, result.output
    assert load_file("out/model.safetensors")["last.weight"].shape == (3, 5)


def recheck(artifact: str = "out", model: str = "nets.py:make", *options: str) -> Result:
    return command("verify", artifact, "--against", model, *options)


ARTIFACTS = ["out", "out/model.fxp", "out/model.pt2", "out/model.safetensors"]
each_artifact = pytest.mark.parametrize("artifact", thorough_but(ARTIFACTS[:2], ARTIFACTS))


@each_artifact
@pytest.mark.parametrize("finalize", ["[finalize]", '[finalize]\nzeros = "clean"', ""])
def test_what_compile_wrote_holds(finalize: str, artifact: str):
    compiled(finalize=finalize)
    result = recheck(artifact, "nets.py:make", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ok"]
    assert "recipe: run again, equal weights" in found["inputs"]
    assert {text[:4] for text in found["inputs"]} == {"eval", "trai", "reci"}


@each_artifact
@pytest.mark.parametrize("finalize", ["[finalize]", ""])
def test_what_a_shrink_left_holds(finalize: str, artifact: str):
    shrunk(finalize=finalize)
    result = recheck(artifact, "nets.py:wide", "--json")
    assert result.exit_code == 0, result.output
    assert "recipe: run again, equal weights" in json.loads(result.stdout)["inputs"]


def test_a_shrunk_artifact_of_another_model_is_told():
    shrunk()
    result = recheck(model="nets.py:wider")
    assert result.exit_code == 1
    assert "the model's weights are not those that were compiled" in result.stdout
    assert "the recipe, run again, gives 'first.weight' other values" in result.stdout


def test_a_bias_of_a_shrunk_artifact_that_was_changed_is_told():
    shrunk()
    state = load_file("out/model.safetensors")
    state["last.bias"][0] += 1e-3
    save_file(state, "out/model.safetensors")
    result = recheck("out/model.safetensors", "nets.py:wide")
    assert result.exit_code == 1
    assert "the weights are not those that were certified" in result.stdout
    assert "the recipe, run again, gives 'last.bias' other values" in result.stdout


def test_a_shrunk_artifact_that_cannot_be_made_again_is_told():
    shrunk('method = "random_structured"')
    result = recheck(model="nets.py:wide")
    assert result.exit_code == 1
    assert "draws without a seed; without that a shrunk artifact cannot be held" in result.stdout


def test_it_holds_elsewhere_without_the_program():
    compiled()
    shutil.copytree("out", "elsewhere")
    Path("elsewhere/model.fxp").unlink()
    assert recheck("elsewhere").exit_code == 0


def test_a_model_with_masks_of_its_own_holds():
    compiled(net="hooked")
    assert recheck(model="nets.py:hooked").exit_code == 0


def test_what_draws_without_a_seed_is_not_run_again():
    compiled("random_unstructured")
    result = recheck("out", "nets.py:make", "--json")
    assert result.exit_code == 0, result.output
    assert "draws without a seed" in json.loads(result.stdout)["inputs"][-1]


def test_another_model_is_told():
    compiled()
    result = recheck(model="nets.py:other")
    assert result.exit_code == 1
    assert "the model's weights are not those that were compiled" in result.stdout
    assert "'out.bias' holds other values than the model's and zeros" in result.stdout


def changed_weights() -> None:
    state = load_file("out/model.safetensors")
    state["out.bias"][0] += 1e-3
    save_file(state, "out/model.safetensors")
    Path("out/model.fxp").unlink()


def more_zeros() -> None:
    state = load_file("out/model.safetensors")
    state["out.bias"][0] = 0.0
    save_file(state, "out/model.safetensors")
    Path("out/model.fxp").unlink()


def changed_statistics() -> None:
    program = load("out/model.fxp")
    program.get_buffer("norm.running_var").add_(1.0)
    save(program, "out/model.fxp")


def changed_graph() -> None:
    program = load("out/model.fxp")
    node: Any = next(n for n in program.graph.nodes if "relu" in str(n.target))
    node.target = torch.ops.aten.tanh.default
    program.recompile()
    save(program, "out/model.fxp")


def changed_certificate() -> None:
    path = Path("out/certificate.json")
    path.write_text(path.read_text().replace('"ok": true', '"ok": false', 1))


def changed_evidence() -> None:
    path = Path("out/certificate.json")
    path.write_text(path.read_text().replace("one product a masked parameter", "nothing", 1))


def sealed(change: Callable[[dict[str, Any]], None]) -> None:
    path = Path("out/certificate.json")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps({**data, "digest": seal_of(data)}))


def changed_hash() -> None:
    sealed(lambda data: data["passes"][0].update(graph_before="0" * 64))


def changed_recipe() -> None:
    sealed(lambda data: data["recipe"]["rule"][0].update(amount=1.5))


def changed_file() -> None:
    exported = torch.export.load("out/model.pt2")
    node: Any = next(n for n in exported.graph.nodes if "relu" in str(n.target))
    node.target = torch.ops.aten.tanh.default
    exported.graph_module.recompile()
    torch.export.save(exported, "out/model.pt2")


TAMPERED = {
    changed_evidence: "it is not as compile wrote it",
    changed_hash: "the model's graphs are not those that were compiled",
    changed_recipe: "the recipe cannot be run again: ",
    changed_file: "the first node that differs is relu (aten.tanh.default",
    changed_weights: "'out.bias' holds other values than the model's and zeros",
    more_zeros: "the recipe, run again, gives 'out.bias' other values",
    changed_statistics: "the buffer 'norm.running_var' is not the model's",
    changed_graph: "the first node that differs is",
    changed_certificate: "it says itself that it does not hold",
}


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_what_was_tampered_with_is_told(tamper: Any):
    compiled()
    tamper()
    result = recheck()
    assert result.exit_code == 1, result.output
    assert TAMPERED[tamper] in result.stdout


def test_a_file_of_another_kind_is_refused():
    compiled()
    Path("out/model.onnx").write_bytes(b"anything")
    result = recheck("out/model.onnx")
    assert result.exit_code == 2
    assert "cannot be held to a certificate" in result.stderr


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"passes": [], "recipe": {}}', '{"passes": [1], "recipe": {}}', "[" * 9**5],
)
def test_what_is_no_certificate_is_refused(text: str):
    Path("certificate.json").write_text(text)
    with pytest.raises(FormatError):
        read_certificate(Path("certificate.json"))
