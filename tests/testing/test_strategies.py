"""The public strategies: every region of their space is reached, and what is drawn fits."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune.testing
from fxprune.errors import FxpruneError
from fxprune.program.program import Program
from fxprune.recipe.recipe import Recipe
from fxprune.recipe.rule import Rule
from fxprune.recipe.selecting import verdicts
from fxprune.testing.architecture import Activation, build
from fxprune.testing.drawing import (
    DTYPES,
    METHODS,
    DrawnProgram,
    architectures,
    calibrations,
    programs,
    programs_as_data,
    pruning_sequences,
    recipes,
    tied_tensors,
)
from tests.tools.helpers import source_of
from tests.tools.profiles import captures


def sample(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """The first values that are drawn: what they do not reach is drawn too rarely to matter."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found


# Architectures: tests/testing/test_drawn_calls.py has the rest


@cache
def runs() -> list[Any]:
    return sample(architectures(max_layers=2, runs=True), 100)


@pytest.mark.parametrize("kind", ["relu", "tanh", "gelu", "prelu"])
def test_a_run_has_each_function_twice_in_a_row(kind: str):
    pairs = [zip(arch.layers, arch.layers[1:], strict=False) for arch in runs()]
    assert any(all(layer == Activation(kind) for layer in pair) for each in pairs for pair in each)


def test_networks_are_finite_unless_asked_for():
    assert all(arch.outlier is None for arch in sample(architectures(), 200))
    odd = {str(arch.outlier) for arch in sample(architectures(non_finite=True), 300)}
    assert odd == {"None", "inf", "nan", "-0.0", "1e-40"}


def test_shapes_and_dtypes_are_those_asked_for():
    found = sample(architectures(shapes=["image"], dtypes=["float64"]), 20)
    assert {(arch.shape, arch.dtype) for arch in found} == {("image", "float64")}
    assert {arch.dtype for arch in sample(architectures(), 100)} == set(DTYPES)


# Programs


@cache
def drawn_programs() -> list[DrawnProgram]:
    return sample(programs_as_data(networks=st.sampled_from(runs()[:12])), 60)


PROGRAMS: dict[str, Callable[[DrawnProgram], bool]] = {
    "plain": lambda case: case.recipe is None,
    "masked": lambda case: case.recipe is not None,
    "two rules": lambda case: case.recipe is not None and len(case.recipe.rules) == 2,
}


@pytest.mark.thorough
@pytest.mark.parametrize("region", PROGRAMS)
def test_each_kind_of_program_is_reached(region: str):
    assert any(map(PROGRAMS[region], drawn_programs()))


@captures
@given(st.deferred(lambda: programs(networks=st.sampled_from(runs()[:5]), masked=True)))
def test_a_masked_program_has_masks_and_runs(program: Program):
    assert program.masks
    args, kwargs = program.example()
    program(*args, **kwargs)


@captures
@given(st.deferred(lambda: st.sampled_from(drawn_programs())))
def test_a_drawn_program_is_the_same_each_time_and_its_script_makes_it(case: DrawnProgram):
    first, again = case.program(), case.program()
    fxprune.testing.assert_same(dict(first.state_dict()), dict(again.state_dict()))
    assert first is not again
    space: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(case.code(), space)
    fxprune.testing.assert_same(dict(space["program"].state_dict()), dict(first.state_dict()))


# Recipes


@cache
def conv_recipes() -> list[Recipe]:
    return sample(recipes(source_of("conv")), 250)


def any_rule(holds: Callable[[Rule], bool]) -> Callable[[Recipe], bool]:
    return lambda recipe: any(map(holds, recipe.rules))


RECIPES: dict[str, Callable[[Recipe], bool]] = {
    **{method: any_rule(lambda rule, m=method: rule.method == m) for method in METHODS},
    **{
        key: any_rule(lambda rule, k=key: bool(rule.select and getattr(rule.select, k)))
        for key in ("path", "op", "role", "module", "param", "ndim")
    },
    "several paths": any_rule(lambda rule: bool(rule.select and len(rule.select.path) > 1)),
    "match": any_rule(lambda rule: rule.match is not None),
    "global": any_rule(lambda rule: rule.scope == "global"),
    "a count": any_rule(lambda rule: isinstance(rule.amount, int)),
    "nothing": any_rule(lambda rule: rule.amount == 0.0),
    "all": any_rule(lambda rule: rule.amount == 1.0),
    "a seed": any_rule(lambda rule: rule.seed is not None),
    "no seed": any_rule(lambda rule: "random" in str(rule.method) and rule.seed is None),
    "torch's ties": any_rule(lambda rule: rule.ties == "torch"),
    "an infinite norm": any_rule(lambda rule: rule.n == math.inf),
    "another dimension": any_rule(lambda rule: rule.dim == 1),
    "three rules": lambda recipe: len(recipe.rules) == 3,
}


@pytest.mark.parametrize("region", RECIPES)
def test_each_kind_of_recipe_is_reached(region: str):
    assert any(map(RECIPES[region], conv_recipes()))


@given(st.data(), st.sampled_from(["mlp", "conv", "tied", "modes"]))
def test_each_rule_selects_something_and_runs(data: st.DataObject, name: str):
    source = source_of(name)
    recipe = data.draw(recipes(source))
    for rule in recipe.rules:
        assert any(verdict.refusal is None for verdict in verdicts(source, rule))
    fxprune.prune(source, recipe)


def test_coupled_rules_are_drawn_on_request():
    found = sample(recipes(source_of("conv"), coupled=True), 30)
    rules = [rule for recipe in found for rule in recipe.rules]
    assert all(rule.coupled for rule in rules)
    assert {rule.method for rule in rules} == {"ln_structured", "random_structured"}


@pytest.mark.parametrize(
    ("model", "methods", "told"),
    [
        (nn.ReLU(), METHODS, "no parameter that a rule can take"),
        (nn.LayerNorm(2), ["ln_structured"], "none of the methods can prune the Program"),
    ],
)
def test_a_program_without_what_rules_take_is_refused(model: nn.Module, methods: Any, told: str):
    program = fxprune.capture(model, (torch.randn(3, 2),))
    with pytest.raises(FxpruneError, match=told):
        sample(recipes(program, methods=methods), 1)


# Calls


def test_calls_take_a_program_a_module_or_tensors():
    model = nn.Linear(3, 2)
    program = fxprune.capture(model, (torch.zeros(4, 3),))
    for pruned in (model, program, dict(model.named_parameters())):
        names = {
            n for calls in sample(pruning_sequences(pruned), 20) for c in calls for n in c.names
        }
        assert names == {"weight", "bias"}
    assert all(len(calls) <= 2 for calls in sample(pruning_sequences(model, max_calls=2), 20))


# Inputs


def test_calibrations_have_each_batch_and_fit():
    source = source_of("tied")
    found = sample(calibrations(source, max_batch=4), 40)
    assert {args[0].shape[0] for inputs in found for args, _ in inputs} == {1, 2, 3, 4}
    assert {len(inputs) for inputs in found} == {1, 2, 3}
    for args, kwargs in found[0]:
        source(*args, **kwargs)


def test_calibrations_of_fixed_shapes_keep_them():
    program = fxprune.capture(nn.Linear(3, 2), (torch.zeros(4, 3),), batch=None)
    found = sample(calibrations(program), 5)
    assert {args[0].shape for inputs in found for args, _ in inputs} == {(4, 3)}


def test_a_trace_without_an_example_has_no_inputs_to_draw():
    program = fxprune.capture(torch.fx.symbolic_trace(nn.Linear(3, 2)))
    with pytest.raises(FxpruneError, match="captured without an input"):
        sample(calibrations(program), 1)


# Tensors


def tied(tensor: Tensor) -> bool:
    return tensor.abs().unique().numel() < tensor.numel()


@cache
def tensors() -> list[Tensor]:
    return sample(tied_tensors(), 150) + sample(tied_tensors(non_finite=True), 100)


TENSORS: dict[str, Callable[[Tensor], bool]] = {
    **{
        str(dtype): (lambda t, d=dtype: t.dtype == d)
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    },
    **{f"{n} dimensions": (lambda t, n=n: t.ndim == n) for n in (1, 2, 3)},
    "ties": tied,
    "all alike": lambda t: t.numel() > 4 and t.abs().unique().numel() == 1,
    "no ties": lambda t: not tied(t),
    "negative zero": lambda t: bool(((t == 0) & t.signbit()).any()),
    "both signs": lambda t: bool((t == 1).any() and (t == -1).any()),
    "infinite": lambda t: bool(t.isinf().any()),
    "NaN": lambda t: bool(t.isnan().any()),
}


@pytest.mark.parametrize("region", TENSORS)
def test_each_kind_of_tensor_is_reached(region: str):
    assert any(map(TENSORS[region], tensors()))


@given(tied_tensors(shape=(2, 3), dtypes=[torch.float64]))
def test_tensors_are_finite_and_as_asked_for(tensor: Tensor):
    assert tensor.isfinite().all()
    assert (tensor.shape, tensor.dtype) == ((2, 3), torch.float64)


# The package


def test_public_names_are_sorted_and_described():
    names = fxprune.testing.__all__
    assert names == sorted(names)
    assert [name for name in names if not getattr(fxprune.testing, name).__doc__] == []


PROBE = """
import sys
sys.modules["hypothesis"] = None
import fxprune
try:
    import fxprune.testing
except (fxprune.FxpruneError, ImportError) as error:
    print(isinstance(error, fxprune.FxpruneError), isinstance(error, ImportError), error)
"""


def test_without_hypothesis_it_says_what_to_install():
    result = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True
    )
    assert result.stdout == (
        "True True fxprune.testing draws with hypothesis, which is not installed; run "
        '`pip install "fxprune[testing]"`\n'
    )


def test_a_network_needs_no_hypothesis_to_be_built_again():
    arch = runs()[0]
    first, second = build(arch), build(arch)
    fxprune.testing.assert_same(first.args, second.args)
