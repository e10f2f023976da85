"""mask: a masked parameter is read through one product, just before its first user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import functional as prune
from fxprune.errors import PassError, ShapeError
from fxprune.passes.mask import insert_mask
from fxprune.program import parameters
from fxprune.program.program import Program
from fxprune.rewrite.facts import NewMasks
from fxprune.rewrite.pattern import Refusal
from fxprune.rewrite.registry import create
from fxprune.rewrite.rewriter import Rewriter
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.assert_pass import snapshot
from fxprune.testing.comparing import is_same
from tests.conftest import Golden
from tests.tools.helpers import both_texts, inputs, model, program, run, source_of

# A parameter of each model, and the edits for its mask: one of the tree, and four of each graph
# that reads it (the read renamed, the mask's read, the product, its users).
HITS: list[tuple[str, str, int]] = [
    ("mlp", "2.weight", 5),
    ("twice", "fc.weight", 5),
    ("tied", "emb.weight", 5),
    ("modes", "body.weight", 9),
    ("modes", "aux.bias", 5),
]
each_hit = pytest.mark.parametrize(("name", "parameter", "edits"), HITS)


def drawn(p: Program, parameter: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = p.parameter(parameter).shape
    return (torch.rand(shape, generator=generator) > 0.5).float()


def inserted(name: str, parameter: str) -> tuple[Program, Rewriter]:
    p = program(name)
    rewriter = Rewriter(p, by="test")
    rewriter.add_mask(parameter, drawn(p, parameter))
    rewriter.apply([insert_mask])
    rewriter.finish()
    return p, rewriter


# The rule: hits, refuses, once, and with equal outputs


@pytest.mark.smoke
@each_hit
def test_insert_mask_hits(name: str, parameter: str, edits: int, golden: Golden):
    p, rewriter = inserted(name, parameter)
    assert rewriter.edits == edits
    golden("mask", f"{name}-{parameter}", both_texts(text(source_of(name)), text(p)))
    for graph in p.graphs.values():
        for node in graph.nodes:
            if node.name.startswith("mul_tensor"):
                assert node.meta["fxprune.param"] == parameter


def test_insert_mask_refuses():
    p, _ = inserted("mlp", "2.weight")
    before = snapshot(p)
    rewriter = Rewriter(p, by="test")
    rewriter.apply([insert_mask])
    nodes = {node.name: node for node in p.graph.nodes}
    there = "the parameter is read through its mask already"
    assert rewriter.refusals == [
        Refusal("the parameter has no mask", nodes["_0_weight"]),
        Refusal("the parameter has no mask", nodes["_0_bias"]),
        Refusal(there, nodes["_2_weight"]),
        Refusal("the parameter has no mask", nodes["_2_bias"]),
        Refusal(there, nodes["mul_tensor"]),
    ]
    assert snapshot(p) == before


def test_insert_mask_refuses_a_read_without_users():
    p = program("mlp")
    rewriter = Rewriter(p, by="test")
    unused = rewriter.read("2.weight", before=next(iter(p.graph.nodes)))
    rewriter.add_mask("2.weight", torch.ones(2, 4))
    rewriter.apply([insert_mask])
    assert Refusal("nothing reads the parameter", unused) in rewriter.refusals


@each_hit
def test_insert_mask_is_idempotent(name: str, parameter: str, edits: int):
    p, _ = inserted(name, parameter)
    before = snapshot(p)
    rewriter = Rewriter(p, by="test")
    rewriter.apply([insert_mask])
    assert rewriter.edits == 0
    assert snapshot(p) == before


@each_hit
def test_insert_mask_keeps_semantics(name: str, parameter: str, edits: int):
    p, _ = inserted(name, parameter)
    source = model(name)
    weight = source.get_parameter(parameter)
    with torch.no_grad():
        weight.copy_(weight * drawn(p, parameter))
    for train in (True, False):
        assert is_same(p.train(train)(*inputs(name)), source.train(train)(*inputs(name)))


# The pass


def given(masks: dict[str, Tensor]) -> NewMasks:
    def make() -> Iterator[tuple[str, Tensor]]:
        yield from masks.items()

    return NewMasks(tuple(masks), make)


def test_every_new_mask_is_given_to_its_parameter(golden: Golden):
    p = program("mlp")
    masks = {name: drawn(p, name) for name in ("2.bias", "0.weight")}
    _, trace = run(p, create("mask"), given=[given(masks)])
    assert trace.edits == 10
    assert is_same(dict(p.masks), {name: masks[name] for name in ("0.weight", "2.bias")})
    golden("mask", "two", both_texts(text(source_of("mlp")), text(p)))


def test_a_new_mask_replaces_the_one_that_is_there():
    p = prune.identity(program("mlp"), "0.weight")
    before = text(p)
    mask = drawn(p, "0.weight")
    _, trace = run(p, create("mask"), given=[given({"0.weight": mask})])
    assert trace.edits == 1
    assert is_same(p.masks["0.weight"], mask)
    assert text(p) == before


def test_rejoined_masks_are_multiplied():
    soft = torch.full((4, 3), 0.5)
    p = prune.custom_from_mask(program("mlp"), "0.weight", soft)
    masks = {"0.weight": soft, "2.bias": torch.tensor([0.5, 1.0])}
    run(p, create("mask", rejoin=True), given=[given(masks)])
    assert is_same(dict(p.masks), {"0.weight": soft * soft, "2.bias": masks["2.bias"]})


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"the mask of '0\.weight' has shape \(3,\)"):
        run(program("mlp"), create("mask"), given=[given({"0.weight": torch.ones(3)})])


@pytest.mark.parametrize("taken", ["weight_mask", "weight_orig"])
def test_a_name_that_the_source_uses_itself_is_not_taken(taken: str):
    source = nn.Linear(3, 2)
    source.register_buffer(taken, torch.ones(2, 3))
    p = fxprune.capture(source, inputs("linear"))
    before = snapshot(p)
    with pytest.raises(PassError, match=f"its module has an attribute {taken!r} of its own"):
        prune.identity(p, "weight")
    assert snapshot(p) == before


def test_gradients_are_masked():
    p, _ = inserted("twice", "fc.weight")
    p(*inputs("twice")).square().sum().backward()
    gradient = p.parameter("fc.weight").grad
    assert gradient is not None
    kept = parameters.masks(p)["fc.weight"].bool()
    assert gradient[kept].any()
    assert not gradient[~kept].any()
