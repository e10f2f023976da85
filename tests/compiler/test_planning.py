"""plan: its figures are what prune then does, it changes nothing, and a run is held to it."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.compiler import listening
from fxprune.compiler.dry_run import plan
from fxprune.errors import (
    AmountError,
    FormatError,
    FxpruneError,
    PassError,
    RecipeError,
    SelectError,
)
from fxprune.program.program import Program
from fxprune.reports.plans import Plan
from fxprune.reports.summary import Report, report
from fxprune.testing.architecture import Arch, build
from fxprune.testing.comparing import is_same
from fxprune.testing.drawing import architectures
from tests.models.zoo import ZOO
from tests.tools.capture_helpers import program_of
from tests.tools.helpers import program
from tests.tools.profiles import examples

WEIGHTS: dict[str, Any] = {"param": "weight", "ndim": [2, 3, 4, 5]}
L1: dict[str, Any] = {"select": WEIGHTS, "method": "l1_unstructured", "amount": 0.5}
RANDOM: dict[str, Any] = {**L1, "method": "random_unstructured"}
CHANNELS: dict[str, Any] = {**L1, "method": "ln_structured", "n": 2, "dim": 0, "amount": 0.25}
GLOBAL: dict[str, Any] = {**L1, "scope": "global"}


class Sampling(torch_prune.BasePruningMethod):
    """A method that draws, and that writes into what it is given to look at."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Any, default_mask: Any) -> Any:
        t.zero_()
        return default_mask * (torch.rand(t.shape) > 0.5)


def state_of(model: nn.Module) -> Any:
    return copy.deepcopy(model.state_dict()), torch.get_rng_state()


# The figures


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    """A rule of any method, for the matrices or for all parameters."""
    select: Any = draw(st.sampled_from([WEIGHTS, {"ndim": [2, 3, 4, 5]}, "*"]))
    method = draw(
        st.sampled_from(
            [
                "l1_unstructured",
                "random_unstructured",
                "ln_structured",
                "random_structured",
                "identity",
            ]
        )
    )
    rule: dict[str, Any] = {"select": select, "method": method}
    if method != "identity":
        rule["amount"] = draw(st.sampled_from([0.5, 0.2, 0.9, 0.0, 1.0, 1, 2]))
        rule["ties"] = draw(st.sampled_from(["index", "torch"]))
    if method.endswith("_structured"):
        rule |= {"select": {"ndim": [2, 3, 4, 5]}, "dim": draw(st.sampled_from([0, 1, -1]))}
    if method == "ln_structured":
        rule["n"] = draw(st.sampled_from([1, 2, math.inf]))
    if method.endswith("_unstructured"):
        rule["scope"] = draw(st.sampled_from(["local", "global"]))
    if method.startswith("random"):
        rule["seed"] = draw(st.integers(0, 9))
    return rule


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """One to four rules, or two of a group and one more."""
    drawn = draw(st.lists(rules(), min_size=1, max_size=4))
    if draw(st.sampled_from([False, False, True])):
        shared = {"method": "l1_unstructured", "amount": 0.5, "scope": "global", "group": "g"}
        pair = [{**shared, "select": {"ndim": [2, 4]}}, {**shared, "select": {"ndim": [1, 3]}}]
        drawn = [*({**rule, "optional": True} for rule in pair), drawn[0]]
    return {"rule": drawn}


@examples(5, 15)
@given(architectures(max_layers=3), st.lists(recipes(), min_size=4, max_size=4))
def test_the_plan_is_what_prune_does(arch: Arch, several: list[dict[str, Any]]) -> None:
    model, args, kwargs = build(arch)
    captured = fxprune.capture(model, args, kwargs)
    before, generator = state_of(captured)
    for recipe in several:
        try:
            planned = plan(captured, recipe)
        except FxpruneError as error:
            with pytest.raises(type(error)):
                fxprune.prune(captured, recipe)
            continue
        assert is_same(captured.state_dict(), before)
        assert torch.equal(torch.get_rng_state(), generator)
        assert planned.exact
        hold_to_report(planned, fxprune.prune(captured, recipe))
        assert Plan.from_json(planned.to_json()).to_json() == planned.to_json()
        assert is_same(
            fxprune.prune(captured, planned).state_dict(),
            fxprune.prune(captured, recipe).state_dict(),
        )


def hold_to_report(planned: Plan, masked: Program) -> None:
    found, final = report(masked), report(fxprune.finalize(masked))
    for mine, row, last in zip(planned.parameters, found.parameters, final.parameters, strict=True):
        for key in ("name", "aliases", "shape", "dtype", "numel", "zeros", "bytes", "mask_bytes"):
            assert getattr(mine, key) == getattr(row, key), key
        assert mine.final_bytes == last.bytes + last.mask_bytes
        assert mine.rules == row.rules
        mask = masked.masks.get(mine.name)
        cuts = [cut for rule in planned.rules for cut in rule.parameters if cut.name == mine.name]
        dead = 0 if mask is None else int((mask == 0).sum())
        assert sum(cut.zeros or 0 for cut in cuts) == dead
    for key in ("zeros", "total", "bytes", "mask_bytes"):
        assert getattr(planned, key) == getattr(found, key)
    hold_to_records(planned, found)


def hold_to_records(planned: Plan, found: Report) -> None:
    for mine, record in zip(planned.rules, found.rules, strict=True):
        assert (mine.name, mine.method) == (record.rule, record.method)
        for cut, did in zip(mine.parameters, record.parameters, strict=True):
            assert cut.name == did.name
            if did.units is None:
                continue
            told = (did.units, did.alive, did.pruned, repr(did.threshold))
            assert (cut.units, cut.alive, cut.pruned, repr(cut.threshold)) == told
            assert cut.zeros is not None
            assert cut.zeros >= 0


def test_masks_that_are_given_are_counted(tmp_path: Path) -> None:
    captured = program("twice")
    mask = torch.tensor([[1.0, 0, 0.5], [0, 0, 1], [1, 1, 1]])
    save_file({"fc.weight": mask}, tmp_path / "masks.safetensors")
    rule = {"select": "fc.weight", "method": "custom_from_mask"}
    in_file = {"rule": [{**rule, "mask": str(tmp_path / "masks.safetensors")}]}
    for planned in (
        plan(captured, in_file),
        plan(captured, fxprune.Recipe(rules=[fxprune.Rule(**rule)]), masks={"fc.weight": mask}),
    ):
        (cut,) = planned.rules[0].parameters
        assert (cut.units, cut.alive, cut.pruned, cut.zeros) == (9, 9, 3, 3)
        assert planned.zeros == 3


def test_scores_that_are_given_decide() -> None:
    captured = program("twice")
    scores = {"fc.weight": torch.arange(9.0).view(3, 3)}
    planned = plan(captured, {"rule": [L1]}, importance_scores=scores)
    assert planned.rules[0].parameters[0].threshold == 3.0
    assert fxprune.prune(captured, planned, importance_scores=scores).masks
    with pytest.raises(PassError, match=r"not what was planned(.|\n)*fc.weight +mask"):
        fxprune.prune(captured, planned)


def test_a_program_with_masks_is_planned_on() -> None:
    masked = fxprune.prune(program_of("lenet"), {"rule": [CHANNELS]})
    planned = plan(masked, {"rule": [GLOBAL]})
    hold = fxprune.prune(masked, {"rule": [GLOBAL]})
    assert planned.zeros == report(hold).zeros
    assert planned.rules[0].alive == sum(int(mask.sum()) for mask in masked.masks.values())


@pytest.mark.smoke
def test_errors_are_those_of_prune() -> None:
    with pytest.raises(SelectError, match="selects nothing"):
        plan(program("twice"), {"rule": [{**L1, "select": "absent"}]})
    with pytest.raises(AmountError, match="9 entries"):
        plan(program("twice"), {"rule": [{**L1, "amount": 10}]})
    with pytest.raises(RecipeError, match="allow_imports"):
        plan(program("twice"), {"rule": [{**L1, "method": "a.b:C"}]})
    with pytest.raises(PassError, match="meta device"):
        plan(copy.deepcopy(program("twice")).to("meta"), {"rule": [L1]})


# Random draws


DRAWN = {
    "entries": [RANDOM],
    "all entries": [{**RANDOM, "scope": "global"}],
    "channels": [{**CHANNELS, "method": "random_structured", "n": None}],
    "then ranked": [RANDOM, L1],
    "then ranked together": [RANDOM, GLOBAL],
    "channels of what is masked": [L1, {**CHANNELS, "method": "random_structured", "n": None}],
}


@pytest.mark.parametrize("case", DRAWN)
def test_exact_figures_hold_for_every_draw(case: str) -> None:
    drawn = [{k: v for k, v in rule.items() if v is not None} for rule in DRAWN[case]]
    captured = program_of("lenet")
    plans: list[Plan] = []
    for seed in range(3):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        plans.append(plan(captured, {"rule": drawn}))
        assert torch.equal(torch.get_rng_state(), state)
        masked = fxprune.prune(captured, {"rule": drawn})
        assert plans[-1].zeros == report(masked).zeros, "the plan is that of the very next run"
    first = plans[0]
    assert any(rule.drawn for rule in first.rules)
    assert not any(plans[0].diff(other) for other in plans)
    for other in plans[1:]:
        for mine, rule in zip(first.rules, other.rules, strict=True):
            assert mine.pruned == rule.pruned or not mine.exact
            for cut, also in zip(mine.parameters, rule.parameters, strict=True):
                assert (cut.alive, cut.pruned) == (also.alive, also.pruned) or not cut.exact
                assert cut.zeros == also.zeros or not cut.zeros_exact
        for row, also in zip(first.parameters, other.parameters, strict=True):
            assert row.zeros == also.zeros or not row.exact
    assert all(rule.exact for rule in first.rules)
    torch.manual_seed(9)
    assert fxprune.prune(captured, first).masks, "another draw is what was planned, too"


def test_what_depends_on_a_draw_is_marked() -> None:
    rules = [{**RANDOM, "scope": "global"}, {**CHANNELS, "amount": 0.5}]
    planned = plan(program_of("lenet"), {"rule": rules})
    text = str(planned)
    lines = {tuple(line.split()[:2]): line for line in text.splitlines()}
    rule = planned.rules[0]
    assert lines["rule-1", "all"].split()[2:] == ["61,470", "61,470", "30,735", "30,735"]
    assert lines["rule-1", "conv1.weight"].split()[2:4] == ["150", "~150"]
    assert not any(cut.exact for cut in rule.parameters)
    assert rule.exact
    assert all(cut.threshold is None for cut in rule.parameters)
    assert not planned.rules[1].exact
    assert "note: drawn without a seed: rule-1; numbers after ~ are those of one draw" in text
    assert "~" not in str(plan(program_of("lenet"), {"rule": [{**RANDOM, "seed": 1}]}))


# Nothing is changed


@pytest.mark.parametrize("name", ["lenet", "attention", "tied_embedding", "aux_head", "lstm"])
def test_model_program_and_generator_stay(name: str) -> None:
    model, args, kwargs = ZOO[name]()
    captured = fxprune.capture(model, args, kwargs)
    parts = [(each, state_of(each)) for each in (model, captured)]
    code, records = captured.code, captured.records
    parameters = dict(captured.named_parameters())
    recipe = {"rule": [{**RANDOM, "select": {"ndim": [2, 3, 4]}}]}
    by_model = plan(model, recipe, args=args, kwargs=kwargs)
    assert not by_model.diff(plan(captured, recipe))
    for each, (state, generator) in parts:
        assert is_same(each.state_dict(), state)
        assert torch.equal(torch.get_rng_state(), generator)
    assert captured.code == code
    assert captured.records == records
    assert not captured.masks
    assert all(captured.get_parameter(key) is value for key, value in parameters.items())


def test_a_method_that_writes_into_weights_does_not_reach_them() -> None:
    captured = program("twice")
    before, generator = state_of(captured)
    own = {"select": "fc.weight", "method": f"{__name__}:Sampling"}
    planned = plan(captured, {"rule": [own]}, allow_imports=True)
    assert is_same(captured.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert planned.rules[0].drawn
    assert not planned.rules[0].exact


# Tables


def test_the_tables_are_golden(golden: Any) -> None:
    second = {**CHANNELS, "select": {"op": "conv2d", "param": "weight"}, "name": "filters"}
    nothing = {**L1, "select": "absent", "optional": True}
    golden("planning", "lenet", str(plan(program_of("lenet"), {"rule": [GLOBAL, second, nothing]})))


def test_the_rich_table_says_the_same() -> None:
    planned = plan(program_of("lenet"), {"rule": [RANDOM]})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(planned.table())
    assert console.export_text().split() == str(planned).split()


# JSON and files


def test_a_saved_plan_is_equal_when_it_is_loaded(tmp_path: Path) -> None:
    rules = [GLOBAL, {**CHANNELS, "n": "inf"}]
    planned = plan(program_of("lenet"), {"rule": rules, "finalize": {}})
    planned.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == planned
    assert os.listdir(tmp_path) == ["plan.json"]
    data = json.loads(planned.to_json())
    assert list(data) == [
        *("format", "version", "model", "recipe", "rules", "parameters", "totals", "notes")
    ]
    assert data["recipe"] == planned.recipe.to_dict()
    assert data["totals"]["zeros"] == planned.zeros
    assert pickle.loads(pickle.dumps(planned)) == planned


def test_infinite_and_undefined_thresholds_survive() -> None:
    captured = copy.deepcopy(program("twice"))
    with torch.no_grad():
        captured.get_parameter("fc.weight")[0] = torch.tensor([math.inf, math.nan, 1.0])
    for amount, threshold in ((8, math.inf), (9, math.nan)):
        planned = plan(captured, {"rule": [{**L1, "amount": amount}]})
        text = planned.to_json()
        again = Plan.from_json(text)
        assert repr(again.rules[0].parameters[0].threshold) == repr(threshold)
        assert again.to_json() == text
        assert fxprune.prune(captured, again).masks


def test_a_mask_file_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("recipes", "plans", "elsewhere"):
        (tmp_path / folder).mkdir()
    save_file({"fc.weight": torch.eye(3)}, tmp_path / "recipes" / "masks.safetensors")
    rule = {"select": "fc.weight", "method": "custom_from_mask", "mask": "masks.safetensors"}
    (tmp_path / "recipes" / "recipe.json").write_text(json.dumps({"rule": [rule]}))
    captured = program("twice")
    plan(captured, tmp_path / "recipes" / "recipe.json").save(tmp_path / "plans" / "a.json")
    monkeypatch.chdir(tmp_path / "recipes")
    plan(captured, {"rule": [rule]}).save(tmp_path / "plans" / "b.json")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("a.json", "b.json"):
        masked = fxprune.prune(captured, Plan.load(tmp_path / "plans" / name))
        assert torch.equal(masked.masks["fc.weight"], torch.eye(3))
    save_file({"fc.weight": torch.eye(3).flip(0)}, tmp_path / "recipes" / "masks.safetensors")
    with pytest.raises(PassError, match="not what was planned"):
        fxprune.prune(captured, Plan.load(tmp_path / "plans" / "a.json"))


def test_masks_from_python_are_given_again(tmp_path: Path) -> None:
    captured, masks = program("twice"), {"fc.weight": torch.eye(3)}
    recipe = fxprune.Recipe(rules=[fxprune.Rule(select="fc.weight", method="custom_from_mask")])
    plan(captured, recipe, masks=masks).save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert torch.equal(
        fxprune.prune(captured, loaded, masks=masks).masks["fc.weight"], masks["fc.weight"]
    )
    with pytest.raises(PassError, match="no mask for"):
        fxprune.prune(captured, loaded)


def test_imported_methods_have_to_be_allowed_again(tmp_path: Path) -> None:
    own = {"select": "fc.weight", "method": f"{__name__}:Sampling"}
    plan(program("twice"), {"rule": [own]}, allow_imports=True).save(tmp_path / "plan.json")
    with pytest.raises(RecipeError, match="allow_imports"):
        Plan.load(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json", allow_imports=True).rules[0].drawn


def damaged(change: Callable[[Any], Any]) -> str:
    data = json.loads(plan(program("twice"), {"rule": [L1]}).to_json())
    return json.dumps(change(data) or data)


def with_value(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


CUT = ("rules", 0, "parameters", 0)
DAMAGED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another format": (with_value("format", value="other"), "format"),
    "another version": (with_value("version", value=2), "version"),
    "no table": (lambda _: [1, 2], "no plan"),
    "unknown key": (with_value("extra", value=1), "extra"),
    "missing key": (lambda data: data.pop("rules") and data, "rules"),
    "negative count": (with_value(*CUT, "pruned", value=-1), "rules.0.parameters.0.pruned"),
    "huge count": (with_value(*CUT, "pruned", value=10**400), "rules.0.parameters.0.pruned"),
    "a text for a count": (with_value(*CUT, "pruned", value="4"), "pruned"),
    "no count": (with_value(*CUT, "pruned", value=None), "'fc.weight' has no counts"),
    "a share for a count": (with_value(*CUT, "pruned", value=4.0), "pruned"),
    "an odd threshold": (with_value(*CUT, "threshold", value="much"), "threshold"),
    "no hash": (with_value("parameters", 0, "weights", value="x" * 64), "weights"),
    "control characters": (with_value("parameters", 0, "name", value="\x1b[2J"), "name"),
    "a stranger": (with_value(*CUT, "name", value="other"), "'other'"),
    "twins": (lambda d: d["parameters"].append(d["parameters"][0]), "'fc.weight' stands there"),
    "another rule": (with_value("rules", 0, "name", value="other"), "'other'|'rule-1'"),
    "a bad recipe": (with_value("recipe", "rule", 0, "amount", value=2.0), "amount"),
    "no recipe": (with_value("recipe", value={}), "rule"),
    "wrong totals": (with_value("totals", "zeros", value=1), "totals"),
    "deep nesting": (with_value("recipe", value=json.loads("[" * 150 + "]" * 150)), "recipe"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_plan_is_refused(case: str) -> None:
    change, told = DAMAGED[case]
    with pytest.raises(FormatError, match=told) as caught:
        Plan.from_json(damaged(change), where="p.json")
    assert str(caught.value).startswith("p.json: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": NaN}',
        b"version = 1\n[[rule]]",
        b"1" * 10_000,
    ],
)
def test_what_is_no_plan_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(raw)
    with pytest.raises(FormatError, match=r"plan\.json: "):
        Plan.load(tmp_path / "plan.json")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    text = plan(program("twice"), {"rule": [L1]}).to_json()
    for end in range(0, len(text) - 1, 41):
        with pytest.raises(FormatError):
            Plan.from_json(text[:end])


def test_files_that_cannot_be_read_or_written_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        Plan.load(tmp_path / "absent.json")
    with pytest.raises(FormatError, match="is not a file"):
        Plan.load(tmp_path)
    planned = plan(program("twice"), {"rule": [L1]})
    with pytest.raises(FormatError, match="does not exist"):
        planned.save(tmp_path / "absent" / "plan.json")
    monkeypatch.setattr("fxprune.reports.plans._MOST_BYTES", 100)
    planned.save(tmp_path / "plan.json")
    with pytest.raises(FormatError, match="larger than 100 bytes"):
        Plan.load(tmp_path / "plan.json")


# Diffs


def changes(before: Plan, after: Plan) -> list[tuple[Any, ...]]:
    found = before.diff(after)
    return [(c.rule, c.parameter, c.what, c.before, c.after) for c in found.changes]


def test_equal_plans_do_not_differ() -> None:
    first, second = (plan(program_of("lenet"), {"rule": [GLOBAL]}) for _ in range(2))
    found = first.diff(second)
    assert not found
    assert str(found) == "the plans are equal"
    assert json.loads(found.to_json()) == {"differs": False, "changes": []}


def test_a_diff_tells_rules_counts_zeros_and_bytes() -> None:
    captured = program("twice")
    kept, extra = {**L1, "name": "kept"}, {**L1, "name": "extra", "select": "*.bias"}
    before = plan(captured, {"rule": [kept]})
    after = plan(captured, {"rule": [{**kept, "amount": 0.2}, extra], "finalize": {}})
    found = before.diff(after)
    assert found
    assert (found.rules_added, found.rules_removed) == (("extra",), ())
    assert (after.diff(before).rules_removed, after.diff(before).rules_added) == (("extra",), ())
    found = changes(before, after)
    expected: list[tuple[Any, ...]] = [
        (None, None, "finalize", None, {}),
        ("extra", None, "added", None, None),
        ("kept", None, "amount", 0.5, 0.2),
        ("kept", None, "pruned", 4, 2),
        ("kept", "fc.weight", "zeros", 4, 2),
        (None, "fc.weight", "zeros", 4, 2),
        (None, "fc.bias", "zeros", 0, 2),
        (None, "fc.bias", "mask_bytes", 0, 12),
        (None, "fc.bias", "rules", (), ("extra",)),
        (None, None, "total mask_bytes", 36, 48),
    ]
    assert [change for change in expected if change not in found] == []
    assert not any(what == "total zeros" for _, _, what, *_ in found)


def test_a_diff_tells_order_and_the_kind_of_amount() -> None:
    captured = program("twice")
    first, second = {**L1, "name": "a"}, {**RANDOM, "name": "b", "seed": 1}
    before, after = (
        plan(captured, {"rule": [first, second]}),
        plan(captured, {"rule": [second, first]}),
    )
    assert (None, None, "order of rules", ["a", "b"], ["b", "a"]) in changes(before, after)
    one, all_of_it = (plan(captured, {"rule": [{**L1, "amount": n}]}) for n in (1, 1.0))
    assert ("rule-1", None, "amount", 1, 1.0) in changes(one, all_of_it)


def test_a_diff_tells_what_the_model_has() -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3, bias=False, dtype=torch.float64)
            self.more = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.more(self.fc(x).float())

    before = plan(program("twice"), {"rule": [L1]})
    after = plan(Wider(), {"rule": [L1]}, args=(torch.ones(2, 3, dtype=torch.float64),))
    found = before.diff(after)
    assert found.parameters_added == ("more.weight", "more.bias")
    assert found.parameters_removed == ("fc.bias",)
    assert (None, "fc.weight", "dtype", "float32", "float64") in changes(before, after)
    assert (None, "fc.weight", "bytes", 36, 72) in changes(before, after)
    assert ("rule-1", "more.weight", "added", None, None) in changes(before, after)


def test_a_diff_as_table_and_json(golden: Any) -> None:
    captured = program("twice")
    before, after = (plan(captured, {"rule": [{**L1, "amount": n}]}) for n in (0.5, 0.2))
    found = before.diff(after)
    golden("planning", "diff", str(found))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(found.table())
    assert console.export_text().split() == str(found).split()
    first = json.loads(found.to_json())["changes"][0]
    assert list(first) == ["rule", "parameter", "what", "before", "after"]
    assert first == {
        "rule": "rule-1",
        "parameter": None,
        "what": "amount",
        "before": 0.5,
        "after": 0.2,
    }


# Held to the plan


def test_a_plan_is_taken_where_a_recipe_is(tmp_path: Path) -> None:
    model, args, _ = ZOO["lenet"]()
    recipe = {"rule": [GLOBAL], "finalize": {}, "export": {"formats": ["safetensors"]}}
    plan(model, recipe, args=args).save(tmp_path / "plan.json")
    planned = Plan.load(tmp_path / "plan.json")
    by_plan = fxprune.compile(model, planned, args, out=tmp_path / "a")
    by_recipe = fxprune.compile(model, recipe, args, out=tmp_path / "b")
    assert is_same(by_plan.program.state_dict(), by_recipe.program.state_dict())
    names = [path.name for path in by_plan.files]
    assert names == ["model.safetensors", "report.json", "certificate.json"]
    assert not planned.diff(plan(model, planned, args=args)), "a plan can be made again"


def test_another_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model, args, _ = ZOO["lenet"]()
    planned = plan(model, {"rule": [GLOBAL], "export": {}}, args=args)
    with torch.no_grad():
        model.get_parameter("conv1.weight")[0, 0, 0, 0] += 1
    for run in (
        lambda: fxprune.compile(model, planned, args, out=tmp_path / "out"),
        lambda: fxprune.prune(model, planned, args=args),
    ):
        with pytest.raises(PassError, match=r"another model(.|\n)*conv1.weight +weights") as caught:
            run()
        assert "fc1" not in str(caught.value)
    assert os.listdir(tmp_path) == []
    other, args, _ = ZOO["residual_cnn"]()
    with pytest.raises(PassError, match=r"another model(.|\n)*removed(.|\n)*added"):
        fxprune.prune(other, planned, args=args)


def test_the_sign_of_a_zero_is_a_difference() -> None:
    captured = copy.deepcopy(program("twice"))
    weight = captured.get_parameter("fc.weight")
    weight.data.zero_()
    planned = plan(captured, {"rule": [L1]})
    weight.data[0, 0] = -0.0
    with pytest.raises(PassError, match="another model"):
        fxprune.prune(captured, planned)


def test_masks_of_before_are_part_of_the_model() -> None:
    captured = program("twice")
    planned = plan(captured, {"rule": [L1]})
    masked = fxprune.prune(captured, {"rule": [{**L1, "method": "identity", "amount": None}]})
    with pytest.raises(PassError, match=r"fc.weight +weights"):
        fxprune.prune(masked, planned)


def test_strides_of_weights_do_not_matter() -> None:
    captured = program_of("lenet")
    planned = plan(captured, {"rule": [CHANNELS]})
    weight = captured.get_parameter("conv2.weight")
    weight.data = weight.data.to(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert fxprune.prune(captured, planned).masks


def test_another_outcome_is_refused_and_the_program_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = copy.deepcopy(program("twice"))
    data = json.loads(plan(captured, {"rule": [L1]}).to_json())
    data["recipe"]["rule"][0]["amount"] = 0.8
    planned = Plan.from_json(json.dumps(data))
    before = state_of(captured)
    for inplace in (False, True):
        with pytest.raises(PassError, match="not what was planned") as caught:
            fxprune.prune(captured, planned, inplace=inplace)
        rows = [line.split() for line in str(caught.value).splitlines()]
        assert ["rule-1", "fc.weight", "pruned", "4", "7"] in rows
        assert ["total", "zeros", "4", "7"] in rows
        assert is_same(captured.state_dict(), before[0])
        assert not captured.masks
    monkeypatch.setattr(listening.PlanCheck, "end", lambda *args: None)
    assert fxprune.prune(captured, planned, inplace=True).masks, "nothing else refuses it"
