"""Translation validation: each kind of broken promise stops a compile and is named."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import fxprune
from fxprune.compiler.build import compile
from fxprune.compiler.run import edit, finalize
from fxprune.compiler.shrinking import shrink_certified
from fxprune.errors import InvariantError
from fxprune.program.program import Program
from fxprune.recipe.rule import Rule
from fxprune.rewrite.facts import Cut, Ranking, Scores, ScoreSource
from fxprune.rewrite.passes import Facts, Rewrite
from fxprune.rewrite.rewriter import Rewriter
from fxprune.verification.certificate import (
    Certificate,
    Digests,
    digest_of,
    graphs_digest,
    state_digest,
)
from fxprune.verification.comparison import verify
from fxprune.verification.recount import Masked, recount
from fxprune.verification.translation import Auditor
from tests.models.zoo import QUICK, ZOO
from tests.mutants import coupling, rewriting, selecting
from tests.mutants.cutting import Coupled, Cutting
from tests.mutants.mutant import Mutant, planted
from tests.mutants.programs import Modes
from tests.tools.helpers import inputs, model, program
from tests.tools.profiles import thorough_but

RULE: dict[str, Any] = {"select": "*.weight", "method": "l1_unstructured", "amount": 0.5}
FINAL: dict[str, Any] = {"rule": [RULE], "finalize": {}}


# What is kept of a compile


@pytest.mark.smoke
def test_the_certificate_has_hashes_promise_evidence_and_seeds_by_pass():
    net, args, kwargs = ZOO["residual_cnn"]()
    drawn = {**RULE, "method": "random_unstructured", "seed": 7}
    result = compile(net, {"rule": [RULE, drawn], "finalize": {}}, args, kwargs)
    passes = result.certificate.passes
    named = [(p.name, p.promise, p.rule, p.seed) for p in passes]
    assert named == [
        ("mask", "masks", "rule-1", None),
        ("mask", "masks", "rule-2", 7),
        ("finalize", "same", "", None),
    ]
    assert all(p.checks for p in passes)
    for earlier, later in itertools.pairwise(passes):
        assert earlier.weights_after == later.weights_before
        assert earlier.graph_after == later.graph_before
    assert passes[0].graph_before == passes[2].graph_after
    assert passes[0].weights_before == state_digest(net.state_dict())
    assert passes[2].weights_after == state_digest(result.program.state_dict())
    assert result.certificate.recipe == {
        "rule": [RULE_DATA, {**RULE_DATA, **DRAWN}],
        "finalize": {},
    }
    assert json.loads(result.report.to_json())["certificate"] == result.certificate.to_data()


RULE_DATA = {"select": {"path": ["*.weight"]}, "method": "l1_unstructured", "amount": 0.5}
DRAWN = {"method": "random_unstructured", "seed": 7}


def test_a_compile_without_certificate_says_so(tmp_path: Path):
    net, args, kwargs = ZOO["lenet"]()
    result = compile(net, FINAL, args, kwargs, certify=False, out=tmp_path / "out")
    assert not result.certificate
    assert "not checked" in str(result.certificate)
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["ok"] is False
    checked = compile(net, FINAL, args, kwargs)
    assert state_digest(checked.program.state_dict()) == state_digest(result.program.state_dict())


@pytest.mark.parametrize("name", thorough_but(QUICK[1::2], ZOO))
def test_the_zoo_raises_no_alarm(name: str):
    net, args, kwargs = ZOO[name]()
    rules = [
        {**RULE, "select": "*", "scope": "global", "amount": 0.3},
        {
            "select": {"ndim": [2, 3, 4]},
            "method": "ln_structured",
            "n": 2,
            "dim": 0,
            "amount": 0.25,
        },
    ]
    certificate = compile(net, {"rule": rules, "finalize": {}}, args, kwargs).certificate
    assert certificate.ok
    assert [p.name for p in certificate.passes] == ["mask", "mask", "finalize"]


def test_which_of_equal_scores_torch_takes_over_several_parameters_is_no_alarm():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    rule = {**RULE, "select": "*", "scope": "global", "amount": 0.3, "ties": "torch"}
    assert compile(net, {"rule": [rule]}, (torch.ones(2, 4),)).certificate.ok


def test_where_a_key_without_a_tensor_stands_is_no_alarm():
    net = nn.MultiheadAttention(4, 2, bias=False, batch_first=True)  # q_proj_weight is None
    x = torch.ones(2, 3, 4)
    rule = {**RULE, "select": "*bias*", "optional": True}
    assert compile(net, {"rule": [rule], "finalize": {}}, (x, x, x)).certificate.ok


# Broken promises


def by_name(name: str) -> Mutant:
    return next(m for m in (*selecting.MUTANTS, *rewriting.MUTANTS) if m.name == name)


BROKEN = {
    "mask is trained": r"'0.weight_mask' has requires_grad=True, and was to have False",
    "mask is not saved": r"other buffers of '0' are saved than before",
    "original copied": r"'0.weight_orig' is another tensor than before",
    "product of the product": r"node mul_tensor_\d: reads the mask of '0.weight' itself",
    "stale compiled code": r"the compiled code is not that of the both graph",
    "activation dropped": r"node relu: went in the both graph",
    "training flag flipped": r"another class or training flag",
    "finalize forgets the mask": r"'0.weight' is not the product of its tensor and its mask",
    "finalize leaves one mask": r"'2.weight' has a mask, and was to have none",
    "finalize loses the order of keys": r"the parameters of '0' are \['bias', 'weight'\]",
    "finalized weights frozen": r"'0.weight' has requires_grad=False, and was to have True",
    "one unit too many": r"7 of the 12 living units of '0.weight' went, and amount",
    "mask inverted": r"a unit of '0.weight' stayed that scores",
    "mask scales what it keeps": r"the mask of '0.weight' has other values than 0",
    "magnitude without abs": r"the scores of '0.weight' are not the magnitudes",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_stops_the_compile_and_is_named(name: str, tmp_path: Path):
    p = program("mlp")
    before = state_digest(p.state_dict())
    with (
        planted(by_name(name)),
        pytest.raises(InvariantError, match=rf"(?s)broke its promise.*{BROKEN[name]}"),
    ):
        compile(p, {**FINAL, "export": {"formats": ["safetensors"]}}, out=tmp_path / "out")
    assert os.listdir(tmp_path) == []
    assert state_digest(p.state_dict()) == before
    assert p.masks == {}


def test_a_mask_on_another_parameter_is_caught():
    p = fxprune.capture(Modes(), (torch.zeros(3, 4),))
    one = {**RULE, "select": "first.weight"}
    message = (
        r"'first.weight' has no mask, and was to have one; 'last.weight' has a mask, and was to"
    )
    with (
        planted(by_name("mask on another parameter")),
        pytest.raises(InvariantError, match=f"mask broke its promise.*{message}"),
    ):
        compile(p, {"rule": [one]})


@pytest.mark.parametrize("last", [False, True])
def test_a_lost_mode_is_caught(last: bool):
    mutant = Mutant(
        "lost", "fxprune.rewrite.rewriter:Rewriter.apply", rewriting.one_graph(last=last)
    )
    p = program("modes")
    with planted(mutant), pytest.raises(InvariantError, match="past its mask"):
        compile(p, FINAL)


@pytest.mark.parametrize("name", ["adoption loses a mask", "adoption takes ones"])
def test_a_lost_mask_of_the_model_is_caught(name: str):
    net = model("mlp")
    for path in ("0", "2"):
        prune.l1_unstructured(net.get_submodule(path), "weight", 0.5)
    message = r"capture broke its promise.*the mask of '[02].weight'"
    with planted(by_name(name)), pytest.raises(InvariantError, match=message):
        compile(net, FINAL, inputs("mlp"))


def test_a_write_past_torchs_count_is_caught():
    def write(original: Any) -> Any:
        def fold(self: Any, p: Program, name: str) -> Tensor:
            bias = p.get_submodule("0")._parameters["bias"]
            if bias is not None:
                bias.data.view(-1)[:] = bias.data.view(-1).clone()
                bias.data.add_(1.0)
            return original(self, p, name)

        return fold

    mutant = Mutant("write", "fxprune.passes.fold_masks:FoldMasks._product", write)
    with planted(mutant), pytest.raises(InvariantError, match=r"past torch's count|first node"):
        compile(program("mlp"), FINAL)


# Values: the first node that differs, on a small input


class AddsToOneEntry(nn.Module):
    """Adds a number where an input entry is positive: most of any input does not matter."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.by = by
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(6))
            self.first.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return torch.cat([y[:, :4], y[:, 4:5] + self.by * torch.relu(y[:, 4:5]), y[:, 5:]], dim=1)


def test_the_first_node_that_differs_is_named_on_a_minimal_input():
    args = (torch.zeros(3, 6),)
    before, after = (fxprune.capture(AddsToOneEntry(by), args) for by in (1.0, 2.0))
    certificate = verify(after, before)
    assert not certificate
    first = certificate.failures[0]
    assert first.node is not None
    assert first.node.startswith("mul")
    assert first.example is not None
    assert first.example.startswith("x: float32[1, 6] of zeros but [0, 4]: ")
    assert first.example.count(":") == 2
    assert "they differ on x: float32[1, 6]" in str(certificate)
    assert [f.example for f in certificate.failures[1:]] == [None] * (len(certificate.failures) - 1)


def test_a_difference_that_needs_two_rows_keeps_two():
    class OfRows(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w + self.by * (x - x.mean(0))

    args = (torch.zeros(3, 2),)
    before, after = (fxprune.capture(OfRows(by), args) for by in (1.0, 2.0))
    given = (torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0], [7.0, 2.0]]),)
    first = verify(after, before, given, trials=0).failures[0]
    assert first.example is not None
    assert first.example.startswith("x: float32[2, 2] of zeros but ")


# Ranking, found again


class Given(ScoreSource):
    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.units = self.alive = scores.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.scores.dtype

    def living(self, start: int, stop: int) -> Tensor | None:
        return None

    def chunk(self, start: int, stop: int) -> Tensor:
        return self.scores[start:stop]


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "mask", "cut", "ties", "fault"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], (2, 1, 1), "index", None),
        ([1, 2, 3, 4], [0, 1, 0, 1], (3, 1, 1), "index", "stayed that scores 2"),
        ([1, 2, 2, 4], [0, 0, 1, 1], (2, 2, 1), "index", None),
        ([1, 2, 2, 4], [0, 1, 0, 1], (2, 2, 1), "index", "a later unit went first"),
        ([1, 2, 2, 4], [0, 1, 0, 1], (2, 2, 1), "torch", None),
        ([1, NAN, 3, NAN], [0, 1, 0, 1], (3, 1, 1), "index", None),
        ([1, NAN, 3, NAN], [0, 0, 1, 1], (NAN, 2, 1), "index", "stayed that scores 3"),
        ([NAN, NAN, NAN, NAN], [0, 0, 1, 1], (NAN, 4, 2), "index", None),
        ([1, 2, 3, 4], [0, 1, 1, 1], (1, 1, 1), "index", "amount = 0.5 is 2"),
        ([1, 2, 3, 4], [0, 0, 1, 1], (1, 1, 1), "index", "its ranking says 1 of 1 at 1"),
        ([1, 2, 3, 4], [0, 0, 1, 2], (2, 1, 1), "index", "other values than 0"),
    ],
)
def test_a_ranking_is_found_again(
    scores: list[float], mask: list[float], cut: Any, ties: str, fault: str | None
):
    threshold, tied, quota = cut
    gone = mask.count(0)
    ranking = Ranking({"weight": Cut(float(threshold), gone, tied, quota)}, (("weight",),), ties)
    values = torch.tensor([scores], dtype=torch.float32)
    part = Masked("weight", values, values, None, torch.tensor([mask], dtype=torch.float32))
    rule = Rule(select="*", method="l1_unstructured", amount=0.5)
    given = Scores({"weight": Given(values.view(-1))})
    found = list(recount(rule, ["weight"], given, ranking, {"weight": part}))
    assert (fault is None and not found) or any(str(fault) in str(each) for each in found), found


# A pass of somebody else


class Renames(Rewrite):
    """Says that it folds masks, and puts an operator in the graph."""

    name: ClassVar[str] = "renames"
    effect: ClassVar[str] = "folds"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        for graph in rewriter.program.graphs.values():
            out = next(node for node in graph.nodes if node.op == "output")
            made = rewriter.call(torch.ops.aten.neg.default, (out.args[0][0],), before=out)
            rewriter.set_argument(out, 0, (made,))


def test_a_pass_that_edits_more_than_it_says_is_refused():
    p = program("mlp")
    with pytest.raises(InvariantError, match=r"renames broke its promise.*node neg_default"):
        edit(p, Renames(), inplace=True, watch=Auditor())
    assert "neg" not in str(p.graph)


# Shrink: the cut, and runs in float64

CUT = Cutting("cut", None, 0)  # pyright: ignore[reportArgumentType]


def test_a_shrink_has_evidence_of_each_pass_and_of_runs_in_float64():
    net, args, kwargs = CUT.model()
    certificate = compile(net, CUT.recipe(), args, kwargs).certificate
    assert certificate.ok
    assert certificate.promise == "close"
    steps = [(step.name, step.promise) for step in certificate.passes]
    assert steps[:2] == [("mask", "masks"), ("finalize", "same")]
    assert set(steps[2:]) == {("fold-branches", "close"), ("shrink", "close")}
    assert re.match(r"float64 outputs of shrink differ by \S+ at most", last_check(certificate))


def last_check(certificate: Certificate) -> str:
    return certificate.passes[-1].checks[-1]


def test_a_shrink_of_clean_zeros_is_held_to_clean_zeros():
    first = nn.Linear(2, 3)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        first.weight[1] = torch.inf  # masked, it is NaN
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    prune.custom_from_mask(first, "weight", mask)
    p = fxprune.capture(net, (torch.ones(2, 2),))
    recipe = {"rule": [{**RULE, "amount": 0}], "finalize": {"zeros": "clean"}, "shrink": {}}
    small = compile(p, recipe).program
    assert small.get_parameter("0.weight").shape == (2, 2)


def test_a_constant_branch_is_not_rounded_in_float64():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.sigmoid(self.branch(x))

    net = Branch()
    with torch.no_grad():
        net.branch.weight.zero_()
    recipe = {"rule": [{**RULE, "amount": 0}], "finalize": {}, "shrink": {}}
    result = compile(net, recipe, (torch.ones(2, 3),))
    assert result.program.captured.shrinks[0].folded == ("sigmoid",)
    assert result.certificate.largest < 1e-12


def test_a_shrink_without_certificate_is_not_run():
    net, args, kwargs = CUT.model()
    result = compile(net, CUT.recipe(), args, kwargs, certify=False)
    assert not result.certificate
    assert result.program.captured.shrinks[0].checked == "not checked"
    checked = compile(net, CUT.recipe(), args, kwargs).program
    assert state_digest(checked.state_dict()) == state_digest(result.program.state_dict())


SPOILT: list[tuple[str, Any, str]] = [
    ("activation dropped", rewriting.drop_activation, "node relu: went in the both graph"),
    ("constant changed", rewriting.change_constant, r"node batch_norm: takes .*, and took"),
    ("flag flipped", rewriting.flip_flag, "has another class or training flag"),
    ("other statistics", lambda p: setattr(p.norm, "running_var", p.norm.running_var + 1), "norm"),
    # It took a constant over, so that its values are held by the outputs alone.
    ("another bias", lambda p: p.last.bias.detach().add_(1), "the parameter 'last.bias'"),
    ("name lost", lambda p: p.captured.first.pop("last.bias"), "the parameters have other names"),
    (
        "buffer came",
        lambda p: p.last.register_buffer("more", torch.ones(1)),
        r"the buffers of 'last' are \['more'\], and were to be \[\]",
    ),
    ("module came", lambda p: p.add_module("more", nn.ReLU()), "the module 'more' came"),
]


@pytest.mark.parametrize(
    ("change", "text"), [each[1:] for each in SPOILT], ids=[e[0] for e in SPOILT]
)
def test_a_cut_that_does_more_than_it_says_is_refused(change: Any, text: str):
    p = finalize(fxprune.prune(fxprune.capture(*CUT.model()[:2]), {"rule": CUT.recipe()["rule"]}))
    finish = Rewriter.finish

    def spoilt(self: Rewriter) -> None:
        if self.by == "shrink":
            change(self.program)
        finish(self)

    mutant = Mutant("spoilt", "fxprune.rewrite.rewriter:Rewriter.finish", lambda _: spoilt)
    told = pytest.raises(InvariantError, match=f"(?s)shrink (broke its )?promise.*({text})")
    with planted(mutant), told:
        shrink_certified(p, listeners=[Auditor()])


# Coupled channels


@pytest.mark.parametrize("number", range(4))
def test_coupled_channels_raise_no_alarm(number: int):
    drawn = Coupled("coupled", None, number)  # pyright: ignore[reportArgumentType]
    net, args, kwargs = drawn.model()
    passes = compile(net, drawn.recipe() | {"shrink": {}}, args, kwargs).certificate.passes
    assert "masks of coupled channels, found again from the scores and limits" in passes[0].checks


@pytest.mark.parametrize("mutant", coupling.MUTANTS, ids=[m.name for m in coupling.MUTANTS])
def test_a_fault_in_coupled_channels_is_told(mutant: Mutant):
    found = coupling.hunt_one(mutant)
    assert found.by is not None, found.crash
    assert found.by.startswith("rule 'rule-")


# Hashes


def test_a_digest_follows_values_dtype_and_shape():
    x = torch.arange(6, dtype=torch.float32)
    same = [x.clone(), torch.stack([x, -x]).t()[:, 0]]
    assert {digest_of(each) for each in same} == {digest_of(x)}
    others = [x.double(), x.view(2, 3), x + 1, x.to("meta"), x.int()]
    assert digest_of(x) not in {digest_of(each) for each in others}
    assert digest_of(torch.tensor(1.0, dtype=torch.bfloat16)) == digest_of(
        torch.ones((), dtype=torch.bfloat16)
    )


def test_remembered_digests_notice_writes():
    p, digests = program("conv"), Digests()
    first = digests.state(p)
    assert digests.state(p) == first == Digests().state(p)
    with torch.no_grad():
        next(p.parameters()).add_(1.0)
    assert digests.state(p) == Digests().state(p) != first


def test_a_graphs_digest_is_that_of_another_capture():
    assert graphs_digest(program("conv")) == graphs_digest(program("conv"))
    assert graphs_digest(program("conv")) != graphs_digest(program("mlp"))
