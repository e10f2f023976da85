"""What is done to Programs is done to those captured by regions."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune import functional as prune
from fxprune.errors import FormatError, InvariantError, PassError, SelectError
from fxprune.files.fxp import save
from fxprune.program.regional import RegionalProgram
from tests.frontends.test_regional import CASES, H, line_of, regional
from tests.models import regional_nets as nets
from tests.tools.capture_helpers import check_same, run, saved, state_of, written

REASON = r"was not called with the example|read by Python code that torch\.export cannot"
MATRICES = {"ndim": [2, 3]}
L1 = {"method": "l1_unstructured", "scope": "global", "amount": 0.4}


def masked(program: RegionalProgram, **rule: Any) -> RegionalProgram:
    found = fxprune.prune(program, {"rule": [{"select": MATRICES, **L1, **rule}]})
    assert isinstance(found, RegionalProgram)
    return found


@pytest.mark.parametrize("name", CASES)
def test_global_l1_over_regions_is_torchs(name: str) -> None:
    model, program, inputs = regional(name)
    ours = masked(program)
    oracle = copy.deepcopy(model)
    places = [n.rpartition(".") for n in program.aliases if n not in program.captured.refused]
    pairs: list[Any] = [
        (oracle.get_submodule(path), attribute)
        for path, _, attribute in places
        if oracle.get_submodule(path).get_parameter(attribute).dim() > 1
    ]
    torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=0.4)
    hooked = dict(oracle.named_buffers())
    assert len(ours.masks) == len(pairs)
    for masked_name, mask in ours.masks.items():
        check_same(mask, hooked[f"{masked_name}_mask"], masked_name)
    dense = written(model, ours.masks)
    final = fxprune.finalize(ours)
    assert list(final.state_dict()) == list(model.state_dict())
    for train in (True, False):
        for program in (copy.deepcopy(ours), copy.deepcopy(final), saved(ours)):
            theirs = copy.deepcopy(dense).train(train)
            program.train(train)
            for x in inputs:
                check_same(run(program, (x,)), run(theirs, (x,)), (train, tuple(x.shape)))
    assert fxprune.verify(final, ours)
    assert fxprune.is_pruned(ours)
    assert not fxprune.is_pruned(final)


@pytest.mark.parametrize(
    "rule",
    [
        {"method": "random_unstructured", "scope": "local", "amount": 0.3, "seed": 3},
        {"method": "ln_structured", "scope": "local", "n": 2, "dim": 0, "amount": 0.5},
        {"method": "random_structured", "scope": "local", "dim": 1, "amount": 1},
        {"method": "identity", "scope": None, "amount": None},
    ],
    ids=lambda rule: rule["method"],
)
def test_all_methods(rule: dict[str, Any]) -> None:
    model, program, inputs = regional("root")
    rule = {key: value for key, value in {**L1, **rule}.items() if value is not None}
    ours = fxprune.prune(program, {"rule": [{"select": MATRICES, **rule}]})
    dense = written(model, ours.masks).eval()
    assert list(ours.masks) == ["stem.l.weight", "up.l.weight", "head.weight"]
    for x in inputs:
        check_same(ours.eval()(x), dense(x))
    plain = fxprune.unmask(ours)
    check_same(state_of(plain), state_of(program))


@pytest.mark.parametrize("name", CASES)
def test_training_steps_equal_those_of_the_source_with_masked_weights(name: str) -> None:
    model, program, inputs = regional(name)
    ours = masked(program)
    parameters = dict(model.named_parameters())

    def theirs(x: Tensor) -> Tensor:
        weights = {n: p * ours.masks[n] if n in ours.masks else p for n, p in parameters.items()}
        return functional_call(model, weights, (x,))

    sides = [(ours, ours), (model, theirs)]
    optimizers = [torch.optim.SGD(side.parameters(), lr=0.1, momentum=0.9) for side, _ in sides]
    before = state_of(ours)
    for step in range(4):
        for (_, forward), optimizer in zip(sides, optimizers, strict=True):
            optimizer.zero_grad()
            run(forward, (inputs[step % len(inputs)],), seed=step).square().sum().backward()
            optimizer.step()
    for key, parameter in parameters.items():
        check_same(ours.parameter(key).detach(), parameter.detach(), key)
    for key, buffer in model.named_buffers():
        check_same(ours.get_buffer(key), buffer, key)
    changed = [key for key, value in ours.state_dict().items() if not value.equal(before[key])]
    assert any(key.endswith("_orig") for key in changed)
    assert not any(key.endswith("_mask") for key in changed)


def test_tied_weights_across_regions_share_one_mask() -> None:
    _, program, inputs = regional("tied")
    ours = masked(program)
    assert list(ours.masks) == ["emb.weight", "mid.weight"]
    assert ours.emb.weight_mask is ours.out.weight_mask
    assert ours.emb.weight_orig is ours.out.weight_orig
    for copied in (copy.deepcopy(ours), saved(ours), fxprune.finalize(ours)):
        names = ("weight_orig", "weight_mask") if copied.masks else ("weight",)
        for name in names:
            assert getattr(copied.emb, name) is getattr(copied.out, name)
        check_same(copied.eval()(inputs[0]), ours.eval()(inputs[0]))


def test_batch_statistics_are_updated_once() -> None:
    _, program, (x, *_) = regional("root")
    ours = masked(program).train()
    ours(x)
    assert int(ours.stem.bn.num_batches_tracked) == 1
    ours.up.bn.eval()
    ours(x)
    assert (int(ours.stem.bn.num_batches_tracked), int(ours.up.bn.num_batches_tracked)) == (2, 1)


def test_in_place_an_optimizer_keeps_working() -> None:
    _, program, (x, *_) = regional("root")
    modules = dict(program.named_modules())
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    weight = program.parameter("up.l.weight")
    rule = {"select": {"path": "up.*", "param": "weight", "ndim": 2}, **L1}
    assert fxprune.prune(program, {"rule": [rule]}, inplace=True) is program
    assert program.up.l.weight_orig is weight
    assert dict(program.named_modules()) == modules
    program(x).sum().backward()
    before = weight.detach().clone()
    optimizer.step()
    assert not weight.equal(before)
    assert program.up.l.weight.eq(0).sum() == 6
    fxprune.finalize(program, inplace=True)
    assert program.up.l.weight is weight


def test_what_fails_leaves_the_program_as_it_was() -> None:
    _, program, _ = regional("root")
    ours = masked(program)
    before, bytes_before = state_of(ours), pickle.dumps(ours)
    rules = [{"select": "stem.l.weight", **L1}, {"select": "up.l.weight", **L1, "amount": 99}]
    with pytest.raises(PassError):
        fxprune.prune(ours, {"rule": rules}, inplace=True)
    check_same(state_of(ours), before)
    assert pickle.dumps(ours) == bytes_before


def test_a_finalize_that_changes_outputs_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, program, _ = regional("root")
    ours = masked(program)
    before = state_of(ours)
    monkeypatch.setattr(
        "fxprune.program.parameters.value", lambda p, n: p.get_parameter(f"{n}_orig") + 1
    )
    with pytest.raises(InvariantError):
        fxprune.finalize(ours, inplace=True)
    monkeypatch.undo()
    check_same(state_of(ours), before)
    assert list(ours.masks) == ["stem.l.weight", "up.l.weight", "head.weight"]


def test_what_python_code_reads_is_not_pruned_by_any_way() -> None:
    _, program, _ = regional("root")
    ours = masked(program)
    assert "down.l.weight" not in ours.masks
    reasons = dict(fxprune.report(ours).refused)
    assert "was not called" in reasons["down.l.weight"]
    assert reasons["head.bias"].startswith("it has 1 dimension")
    for name in ("down.l.weight", "scale"):
        with pytest.raises(SelectError, match=REASON):
            fxprune.prune(program, {"rule": [{"select": name, **L1}]})
        with pytest.raises(SelectError, match=REASON):
            prune.l1_unstructured(program, name, 0.5)


def test_the_functions_of_torchs_names() -> None:
    model, program, inputs = regional("nested")
    twin = copy.deepcopy(model)
    prune.l1_unstructured(program, "middle.1.l.weight", amount=0.5)
    prune.ln_structured(program, "back.0.l.weight", amount=1, n=2, dim=0)
    torch_prune.l1_unstructured(twin.middle[1].l, "weight", amount=0.5)
    torch_prune.ln_structured(twin.back[0].l, "weight", amount=1, n=2, dim=0)
    assert list(program.state_dict()) == list(twin.state_dict())
    for x in inputs:
        check_same(program.eval()(x), twin.eval()(x))
    prune.remove(program, "back.0.l.weight")
    torch_prune.remove(twin.back[0].l, "weight")
    assert list(program.state_dict()) == list(twin.state_dict())


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".fxp"])
def test_one_graph_files_are_refused_and_name_the_line(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    _, program, _ = regional("root")
    path = tmp_path / f"net{suffix}"
    write = save if suffix == ".fxp" else fxprune.export
    with pytest.raises(FormatError) as caught:
        write(program, path)
    place = f"regional_nets.py, line {line_of('  # the branch')}: if x.sum() > 0:"
    assert place in str(caught.value)
    assert f"{suffix} file holds one graph" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_safetensors_load_into_the_source_class(tmp_path: Path) -> None:
    for name in ("root", "tied"):
        _, program, inputs = regional(name)
        final = fxprune.finalize(masked(program)).eval()
        path = fxprune.export(final, tmp_path / f"{name}.safetensors")
        source = CASES[name][0]()
        source.load_state_dict(load_file(path), strict=True)
        for x in inputs:
            check_same(source.eval()(x), final(x))


def test_compile_does_all_that_a_recipe_declares(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = {"rule": [{"select": MATRICES, **L1}], "finalize": {}}
    out = tmp_path / "out"
    result = fxprune.compile(
        nets.Loop(), {**recipe, "export": {"formats": ["safetensors"]}}, (8 * H,), out=out
    )
    assert isinstance(result.program, RegionalProgram)
    assert result.certificate.ok
    assert sorted(path.name for path in out.iterdir()) == [
        "certificate.json",
        "model.safetensors",
        "report.json",
    ]
    other = tmp_path / "other"
    with pytest.raises(FormatError, match=r"regional_nets\.py, line"):
        fxprune.compile(nets.Loop(), {**recipe, "export": {"formats": ["pt2"]}}, (H,), out=other)
    assert not other.exists()


def test_verify_tells_a_changed_region() -> None:
    model, program, (x, *_) = regional("root")
    assert fxprune.verify(program, model, (x,))
    other = copy.deepcopy(program)
    with torch.no_grad():
        other.parameter("head.weight").add_(1)
    assert not fxprune.verify(other, program)
    assert not fxprune.verify(other, model, (x,))


def test_a_program_moves_to_another_dtype() -> None:
    _, program, (x, *_) = regional("recurrent")
    ours = masked(program).double()
    source = written(CASES["recurrent"][0](), {})
    source.load_state_dict(fxprune.finalize(ours).state_dict())
    check_same(ours.eval()(x.double()), source.double().eval()(x.double()))


def test_a_program_is_captured_as_a_copy_and_loads_state() -> None:
    _, program, (x, *_) = regional("root")
    ours = masked(program)
    again = fxprune.capture(ours)
    assert isinstance(again, RegionalProgram)
    assert again is not ours
    with torch.no_grad():
        again.parameter("head.weight").mul_(2)
    again.load_state_dict(ours.state_dict(), strict=True)
    check_same(again.eval()(x), ours.eval()(x))


def test_a_masked_weight_acts_wherever_python_code_reads_it() -> None:
    """The second method runs a layer past its region, which no graph covers."""
    model, program, (x, *_) = regional("walk")
    ours = masked(program)
    dense = written(model, ours.masks)
    assert "deep.l.weight" in ours.masks
    check_same(ours(-x), dense(-x))
