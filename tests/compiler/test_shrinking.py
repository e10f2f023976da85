"""The facade of shrink: all or nothing, checked, told, and fit for whatever comes after."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import functional as prune
from fxprune.channels.surgery import Surgery
from fxprune.compiler.shrinking import shrink
from fxprune.errors import InvariantError, PassError, PassTypeError, RecipeError
from fxprune.files.fxp import load, save
from fxprune.files.writers import export
from fxprune.program.program import Program
from fxprune.program.records import AxisMap, ShrinkRecord, joined_record
from fxprune.testing.comparing import is_same
from tests.tools.shrink_checks import BOUND, cuts, gap, shrink_and_check


class Small(nn.Module):
    """Convolutions whose dead channels have a bias that is alive."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 6, 1, bias=False)
        self.c = nn.Linear(6, 4)
        with torch.no_grad():
            self.a.weight[:3] = 0
            self.b.weight[4:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.n(self.a(x))))).mean((2, 3)))


def program(model: nn.Module | None = None, dtype: torch.dtype = torch.float64) -> Program:
    x = torch.randn(2, 3, 5, 5, dtype=dtype)
    return fxprune.capture((model or Small()).to(dtype), (x,)).eval()


def test_the_given_program_is_not_changed():
    p = program()
    before, code = copy.deepcopy(p.state_dict()), p.code
    small, record = shrink_and_check(p)
    assert is_same(dict(p.state_dict()), dict(before))
    assert p.code == code
    assert p.captured.shrinks == ()
    # The last two channels of b are 0, and the bias of a becomes one that b had not.
    assert cuts(record)["a.weight", 0] == (3, 4, 5, 6, 7)
    assert cuts(record)["b.weight", 0] == (0, 1, 2, 3)
    assert cuts(record)["c.weight", 1] == (0, 1, 2, 3)
    assert record.added == record.absorbed == ("b.bias",)
    keys = list(before)
    keys.insert(keys.index("b.weight") + 1, "b.bias")
    assert list(small.state_dict()) == keys


def test_in_place_keeps_the_parameter_objects_and_drops_their_gradients():
    p = program()
    p(torch.randn(2, 3, 5, 5).double()).sum().backward()
    objects = {name: id(each) for name, each in p.named_parameters()}
    before = copy.deepcopy(p)
    assert shrink(p, inplace=True) is p
    assert gap(before, p) < BOUND
    assert all(id(each) == objects.get(name, id(each)) for name, each in p.named_parameters())
    assert p.parameter("a.weight").grad is None
    p(torch.randn(2, 3, 5, 5).double()).sum().backward()
    assert p.parameter("a.weight").grad is not None


@pytest.mark.parametrize("inplace", [False, True])
def test_a_broken_cut_changes_nothing(monkeypatch: pytest.MonkeyPatch, inplace: bool):
    monkeypatch.setattr(Surgery, "absorb", lambda self, sink: None)
    p = program()
    before = copy.deepcopy(p.state_dict())
    with pytest.raises(InvariantError, match="differ; nothing was changed"):
        shrink(p, inplace=inplace)
    assert is_same(dict(p.state_dict()), dict(before))
    assert p.captured.shrinks == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_checked_in_float64(dtype: torch.dtype):
    model = Small().to(dtype)
    small = shrink(program(model, dtype))
    assert small.get_submodule("a").weight.dtype == dtype
    assert small.get_parameter("a.weight").shape[0] == 5
    assert "float64" in small.captured.shrinks[0].checked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_constant_branch_has_the_dtype_that_the_program_went_to(dtype: torch.dtype):
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.bn, self.c = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
            nn.init.zeros_(self.b.weight)
            nn.init.constant_(self.bn.bias, 1 / 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.a(x) + self.bn(self.b(x)))

    program = fxprune.capture(Branches(), (torch.randn(2, 3, 4, 4),)).eval().to(dtype)
    small = fxprune.shrink(program)
    assert small.captured.shrinks[-1].folded
    x = torch.randn(2, 3, 4, 4).to(dtype)
    assert small(x).dtype == dtype
    # The constant is rounded once, where batch norm rounds at each step.
    atol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(small(x), program(x), rtol=0, atol=atol)


def test_without_certify_the_same_is_cut_and_nothing_is_run(monkeypatch: pytest.MonkeyPatch):
    prune.l1_unstructured(masked := program(), "c.weight", 0.5)
    final = fxprune.finalize(masked)
    small = shrink(final)
    monkeypatch.setattr(Program, "forward", None)
    quick = shrink(fxprune.finalize(masked, certify=False), certify=False)
    assert is_same(dict(quick.state_dict()), dict(small.state_dict()))
    assert quick.captured.shrinks[0].maps == small.captured.shrinks[0].maps
    assert quick.captured.shrinks[0].checked == "not checked"


def test_parameters_stay_frozen():
    small, _ = shrink_and_check(program(Small().requires_grad_(False)))
    assert not any(each.requires_grad for each in small.parameters())


def test_a_masked_program_stays_masked():
    p = program()
    prune.l1_unstructured(p, "c.weight", 0.5)
    small, _ = shrink_and_check(p)
    assert small.masks["c.weight"].shape == (4, 4)
    assert is_same(small.masks["c.weight"], p.masks["c.weight"][:, :4])
    assert small.parameter("c.weight").shape == (4, 4)


def test_channel_counts_are_multiples_where_they_can_be():
    small, record = shrink_and_check(program(), round_to=4)
    assert small.get_parameter("a.weight").shape[0] == 8
    assert small.get_parameter("b.weight").shape[:2] == (4, 8)
    assert record.round_to == 4
    assert any("multiples of 4" in stay.reason for stay in record.stays)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "8"])
def test_a_wrong_round_to_is_refused(wrong: object):
    with pytest.raises(PassError, match="round_to="):
        shrink(program(), round_to=wrong)  # pyright: ignore[reportArgumentType]


def test_a_module_is_refused():
    with pytest.raises(PassTypeError, match="capture"):
        shrink(Small())  # pyright: ignore[reportArgumentType]


def test_a_program_without_shapes_is_refused():
    traced = fxprune.capture(torch.fx.symbolic_trace(Small()))
    with pytest.raises(PassError, match="needs shapes"):
        shrink(traced)


class Branching(nn.Module):
    """Control flow that depends on values: captured by regions."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.last = Small(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.small(x)
        if y.sum() > 0:
            y = y * 2
        return self.last(y)


def test_regions_are_shrunk_each_by_itself():
    small = shrink(program(Branching()))
    record = small.captured.shrinks[0]
    assert cuts(record)["small.a.weight", 0] == (3, 4, 5, 6, 7)
    assert ("small.c.weight", 0) not in cuts(record)


def test_inputs_that_cannot_be_drawn_are_told():
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.table(x + 3))

    p = fxprune.capture(Looks(), (torch.tensor([[0, 1], [1, 0]]),))
    for name in ("_inputs",):
        assert not hasattr(p, name)
    object.__setattr__(p.captured.inputs.inputs[0], "high", 90)
    object.__setattr__(p.captured.inputs.inputs[0], "low", 60)
    assert "not checked by running it" in shrink(p).captured.shrinks[0].checked


def test_what_comes_after(tmp_path: Path):
    small, record = shrink_and_check(program())
    x = torch.randn(4, 3, 5, 5).double()
    assert is_same(copy.deepcopy(small)(x), small(x))
    assert is_same(pickle.loads(pickle.dumps(small))(x), small(x))
    save(small, tmp_path / "small.fxp")
    loaded = load(tmp_path / "small.fxp").eval()
    assert is_same(loaded(x), small(x))
    assert loaded.captured.shrinks == small.captured.shrinks
    export(small, tmp_path / "small.pt2")
    export(small, tmp_path / "small.safetensors")
    assert is_same(torch.compile(small, fullgraph=True, backend="eager")(x), small(x))
    twin = copy.deepcopy(small)
    twin.load_state_dict(small.state_dict())
    optimizer = torch.optim.Adam(twin.train().parameters())
    twin(x).sum().backward()
    optimizer.step()
    again = fxprune.finalize(prune.l1_unstructured(twin, "b.weight", 0.5))
    shrink(again)
    assert record.maps != ()


RULE = {"select": {"op": "linear", "param": "weight"}, "n": 2, "dim": 0, "amount": 0.5}
RECIPE = {"rule": [{**RULE, "method": "ln_structured"}], "finalize": {}, "shrink": {}}


def test_a_recipe_shrinks_after_finalize():
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )
    seen: list[str] = []
    result = fxprune.compile(model, RECIPE, (torch.randn(4, 8),), on_pass=seen.append)
    assert result.certificate
    assert result.certificate.promise == "close"
    assert all(label.startswith("eval: ") for label in result.certificate.inputs)
    assert result.program.get_submodule("2").weight.shape == (8, 8)
    assert seen.index("finalize") < seen.index("channels")
    assert "shrink" in seen[seen.index("channels") :]


def test_a_recipe_says_round_to():
    recipe = fxprune.Recipe.from_dict({**RECIPE, "shrink": {"round_to": 8}})
    assert recipe.to_dict()["shrink"] == {"round_to": 8}
    with pytest.raises(RecipeError, match=r"shrink.*round_to = 0"):
        fxprune.Recipe.from_dict({**RECIPE, "shrink": {"round_to": 0}})


def test_rounds_are_told_as_one():
    first = ShrinkRecord(maps=(AxisMap("w", 0, 6, (1, 3, 5)),), notes=("a",), seconds={"x": 1.0})
    second = ShrinkRecord(maps=(AxisMap("w", 0, 3, (0, 2)),), notes=("a",), seconds={"x": 2.0})
    joined = joined_record([first, second])
    assert joined.maps == (AxisMap("w", 0, 6, (1, 5)),)
    assert joined.notes == ("a",)
    assert joined.seconds == {"x": 3.0}


def test_what_differs_in_train_mode_is_told():
    small = shrink(program())
    assert any("batch_norm" in note and ".py:" in note for note in small.captured.shrinks[0].notes)
