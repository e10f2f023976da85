"""Networks and recipes as code: the script makes the same model, the file the same recipe."""

from __future__ import annotations

import tomllib
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.recipe.recipe import Recipe
from fxprune.testing.architecture import Arch, build
from fxprune.testing.code import network_code, recipe_code, toml_of
from fxprune.testing.comparing import difference
from fxprune.testing.drawing import architectures
from tests.tools.profiles import examples


@given(architectures(non_finite=True))
def test_the_script_of_a_network_makes_its_model_and_inputs(arch: Arch):
    built = build(arch)
    space: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(network_code(arch), space)
    model = space["model"]
    assert difference((space["args"], space["kwargs"]), (built.args, built.kwargs)) is None
    assert difference(dict(model.state_dict()), dict(built.model.state_dict())) is None
    frozen = [[p.requires_grad for p in each.parameters()] for each in (model, built.model)]
    assert frozen[0] == frozen[1]
    pair = (model.eval(), built.model.eval())
    outputs = [each(*built.args, **built.kwargs) for each in pair]
    assert difference(outputs[0], outputs[1]) is None


RULES = st.fixed_dictionaries(
    {
        "select": st.fixed_dictionaries(
            {}, optional={"path": st.lists(st.text(min_size=1), min_size=1), "ndim": st.just([2])}
        ),
        "method": st.just("ln_structured"),
        "n": st.sampled_from([1, 2.5, "inf", "fro"]),
        "amount": st.floats(0, 1) | st.integers(0, 9),
        "ties": st.sampled_from(["index", "torch"]),
    }
)


@examples(20, 100)
@given(st.lists(RULES, min_size=1, max_size=3), st.booleans())
def test_the_file_of_a_recipe_says_the_same(rules: list[dict[str, Any]], finalized: bool):
    data: dict[str, Any] = {
        "rule": rules,
        **({"finalize": {"zeros": "clean"}} if finalized else {}),
    }
    try:
        recipe = Recipe.from_dict(data)
    except ValueError:  # control characters in a name
        return
    assert Recipe.from_dict(tomllib.loads(toml_of(recipe))) == recipe
    assert Recipe.from_dict(eval(recipe_code(recipe))) == recipe
