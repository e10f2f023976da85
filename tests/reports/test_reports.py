"""Reports: the numbers are those of the tensors, in rows, in text and in JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune import functional as prune
from fxprune.errors import MissingParameterError, PassError, PassTypeError
from fxprune.reports.summary import Report, report
from tests.models.zoo import ZOO

WEIGHTS = {"op": ["conv2d", "linear"], "param": "weight"}
RECIPE: dict[str, Any] = {
    "rule": [
        {
            "name": "weights",
            "select": WEIGHTS,
            "method": "l1_unstructured",
            "scope": "global",
            "amount": 0.2,
        },
        {
            "name": "filters",
            "select": "conv2.weight",
            "method": "ln_structured",
            "n": 2,
            "dim": 0,
            "amount": 0.25,
        },
    ]
}


@pytest.fixture(scope="module")
def masked() -> fxprune.Program:
    model, args, _ = ZOO["lenet"]()
    return fxprune.prune(fxprune.capture(model, args), RECIPE)


@pytest.mark.smoke
def test_each_row_counts_its_parameter(masked: fxprune.Program) -> None:
    found = report(masked)
    assert [row.name for row in found.parameters] == list(masked.aliases)
    for row in found.parameters:
        value, mask = masked.value(row.name), masked.masks.get(row.name)
        assert row.shape == tuple(value.shape)
        assert (row.numel, row.zeros) == (value.numel(), int((value == 0).sum()))
        assert row.kept == row.numel - row.zeros
        assert row.share == row.zeros / row.numel
        assert (row.dtype, row.bytes) == ("float32", 4 * row.numel)
        assert row.mask_bytes == (0 if mask is None else 4 * row.numel)
        assert bool(row.rules) == row.name.endswith("weight")
    assert found.total == sum(p.numel() for p in masked.parameters())
    assert found.zeros == sum(int((masked.value(n) == 0).sum()) for n in masked.aliases)
    assert found.bytes == 4 * found.total
    assert found.mask_bytes == sum(mask.nbytes for mask in masked.masks.values())


def test_rows_tell_the_last_rule_and_all(masked: fxprune.Program) -> None:
    rows = {row.name: row for row in report(masked).parameters}
    conv2 = rows["conv2.weight"]
    assert (conv2.rules, conv2.rule) == (("weights", "filters"), "filters")
    assert (conv2.units, conv2.pruned) == (16, 4)
    assert rows["fc1.weight"].rules == ("weights",)
    assert rows["fc1.weight"].units == rows["fc1.weight"].numel
    thresholds = {rows[name].threshold for name in ("conv1.weight", "fc1.weight", "fc2.weight")}
    assert len(thresholds) == 1, "ranked together, cut at one threshold"
    assert sum(rows[name].tied for name in rows if rows[name].rule == "weights") <= 1
    assert rows["conv1.bias"].rule is None
    assert rows["conv1.bias"].threshold is None


def test_ties_that_torch_chose_are_counted_where_they_went() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10))
    for weight in model.parameters():
        nn.init._no_grad_uniform_(weight, -1, 1).data.round_(decimals=1)
    more = {"select": "*.weight", "ties": "torch", "amount": 0.5}
    rules = [
        {**more, "method": "l1_unstructured", "scope": "global"},
        {**more, "method": "ln_structured", "n": 1, "dim": 0},
    ]
    program = fxprune.capture(model, (torch.zeros(2, 30),))
    first = fxprune.prune(program, {"rule": rules[:1]})
    both = fxprune.prune(first, {"rule": rules[1:]})
    assert not torch.equal(first.masks["0.weight"], _by_index(program, rules[0]))
    for row in report(both).rules[0].parameters:
        score, gone = program.value(row.name).abs(), first.masks[row.name] == 0
        went = gone & (score == row.threshold)
        assert (row.pruned, row.quota) == (int(gone.sum()), int(went.sum()))
    for row in report(both).rules[1].parameters:
        assert row.pruned == int((first.masks[row.name].sum(1) != 0).sum()) - int(
            (both.masks[row.name].sum(1) != 0).sum()
        )


def _by_index(program: fxprune.Program, rule: dict[str, Any]) -> torch.Tensor:
    return fxprune.prune(program, {"rule": [{**rule, "ties": "index"}]}).masks["0.weight"]


def test_the_two_lines_are_those_of_the_tutorial(masked: fxprune.Program) -> None:
    weights = [masked.value(name) for name in masked.masks]
    zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    conv1 = masked.value("conv1.weight")
    share = 100.0 * float((conv1 == 0).sum()) / conv1.nelement()
    assert report(masked).lines("conv1.weight") == (
        f"Sparsity in conv1.weight: {share:.2f}%\nGlobal sparsity: {100.0 * zeros / total:.2f}%"
    )
    assert report(masked).sparsity() == zeros / total
    assert len(report(masked).pruned) == len(masked.masks)


def test_a_finalized_program_is_reported_alike(masked: fxprune.Program) -> None:
    before, after = report(masked), report(fxprune.finalize(masked))
    assert after.mask_bytes == 0
    rows = [dataclasses.replace(row, mask_bytes=0) for row in before.parameters]
    assert rows == list(after.parameters)
    assert after.rules == before.rules


def test_refused_says_why_for_each_rule(masked: fxprune.Program) -> None:
    refused = dict(report(masked).refused)
    assert set(refused) == {name for name in masked.aliases if name.endswith("bias")}
    assert refused["conv1.bias"].startswith("weights: its attribute is bias, not weight; filters: ")
    model, args, _ = ZOO["lenet"]()
    one = fxprune.prune(fxprune.capture(model, args), {"rule": [RECIPE["rule"][0]]})
    assert not dict(report(one).refused)["conv1.bias"].startswith("weights:")


def test_nothing_pruned_is_reported_as_that() -> None:
    model, args, _ = ZOO["lenet"]()
    found = report(fxprune.capture(model, args))
    assert (found.pruned, found.refused, found.rules, found.seconds) == ((), (), (), {})
    assert found.sparsity() == 0.0
    assert found.lines("fc1.weight").endswith("\nGlobal sparsity: 0.00%")


def test_a_tied_parameter_is_one_row_under_each_name() -> None:
    model, args, _ = ZOO["tied_embedding"]()
    program = fxprune.capture(model, args)
    prune.l1_unstructured(program, "out.weight", amount=0.5)
    found = report(program)
    (row,) = found.pruned
    assert row.aliases == ("emb.weight", "out.weight")
    assert row.rules == ("functional",)
    assert found.sparsity("out.weight") == found.sparsity("emb.weight") == row.share


def test_adopted_masks_and_notes_are_told() -> None:
    model, args, _ = ZOO["attention"]()
    torch_prune.l1_unstructured(model.get_submodule("attention.out_proj"), "weight", amount=0.5)
    program = fxprune.capture(model, args)
    found = report(program)
    assert [row.rule for row in found.pruned] == ["torch.nn.utils.prune"]
    assert found.notes == program.notes
    assert found.notes


def test_json_is_valid_in_a_fixed_order_and_complete(masked: fxprune.Program) -> None:
    found = report(masked)
    data = json.loads(found.to_json())
    assert found.to_json() == report(masked).to_json()
    assert data["zeros"] == found.zeros
    assert data["sparsity"] == found.sparsity()
    assert [row["name"] for row in data["parameters"]] == [row.name for row in found.parameters]
    assert [row["rule"] for row in data["parameters"]] == [row.rule for row in found.parameters]
    assert [rule["rule"] for rule in data["rules"]] == ["weights", "filters"]
    assert set(data["seconds"]) >= {"select", "magnitude", "norm", "rank", "cut", "mask"}
    assert data["seconds"]["mask"] == sum(rule["seconds"]["mask"] for rule in data["rules"])
    assert data["refused"][0].keys() == {"parameter", "reason"}


def _nothing_but_json(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def test_json_has_no_literals_that_json_lacks() -> None:
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[torch.nan, torch.inf], [torch.nan, 1.0]])
    rule = {"select": "weight", "method": "l1_unstructured", "amount": 3}
    program = fxprune.prune(fxprune.capture(model, (torch.ones(3, 2),)), {"rule": [rule]})
    found = report(program)
    assert found.pruned[0].threshold != found.pruned[0].threshold
    data = json.loads(found.to_json(), parse_constant=_nothing_but_json)
    assert data["parameters"][0]["threshold"] == "nan"
    assert data["rules"][0]["parameters"][0]["threshold"] == "nan"


def test_text_and_table_have_a_line_for_each_parameter(masked: fxprune.Program) -> None:
    found = report(masked)
    lines = str(found).splitlines()
    assert len(lines) == 1 + len(found.parameters) + 1
    assert lines[0].split() == [
        "parameter",
        "zeros",
        "kept",
        "share",
        "bytes",
        "rule",
        "threshold",
        "ties",
    ]
    assert lines[1].startswith("conv1.weight ")
    assert lines[-1].split()[:2] == ["total", f"{found.zeros:,}"]
    console = Console(file=io.StringIO(), width=80)
    console.print(found.table())
    written: Any = console.file
    assert [line.split() for line in written.getvalue().splitlines()] == [
        line.split() for line in lines
    ]


def test_names_in_brackets_are_no_markup() -> None:
    model = nn.ModuleDict({"[red]": nn.Linear(2, 2)})
    module = nn.Sequential()
    module.add_module("[bold]", model["[red]"])
    console = Console(file=io.StringIO(), width=80)
    console.print(report(fxprune.capture(module, (torch.ones(3, 2),))).table())
    written: Any = console.file
    assert "[bold].weight" in written.getvalue()


def test_other_things_than_programs_and_names_are_refused(masked: fxprune.Program) -> None:
    with pytest.raises(PassTypeError, match="report takes a Program, not Linear"):
        report(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        MissingParameterError, match="the report has no parameter 'conv9'; there are 'conv1"
    ):
        report(masked).lines("conv9")


def test_a_program_without_values_is_refused() -> None:
    program = fxprune.capture(nn.Linear(2, 2), (torch.ones(3, 2),)).to("meta")
    with pytest.raises(PassError, match="'weight' is on the meta device"):
        report(program)


def test_a_report_is_a_value(masked: fxprune.Program) -> None:
    found = report(masked)
    assert pickle.loads(pickle.dumps(found)) == found == report(masked)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.notes = ("other",)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(found, Report)
