"""Threads: work gives what it gives alone; nothing global is left changed or used up."""

from __future__ import annotations

import copy
import logging
import random
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune import functional as prune
from fxprune.compiler.dry_run import explain, plan
from fxprune.files.masks import fit_masks, read_masks, write_masks
from fxprune.files.pt2 import load_pt2
from fxprune.files.writers import read_weights
from fxprune.support.torch_state import quiet_export
from fxprune.testing.comparing import is_same
from tests.models.zoo import ZOO

MODELS = ["lenet", "aux_head", "lstm", "tied_embedding", "kwargs_dict", "called_twice"]
RULES = [
    {"select": "*weight*", "method": "l1_unstructured", "amount": 0.4, "scope": "global"},
    {"select": "*", "method": "random_unstructured", "amount": 0.2, "seed": 3},
    {"match": "linear(_, W)", "prune": "W", "method": "ln_structured", "n": 2, "dim": 0,
     "amount": 1, "optional": True},
]  # fmt: skip
RECIPE = {"rule": RULES, "finalize": {}, "export": {"formats": ["fxp", "pt2"]}}


def all_of_it(name: str, made: Any, out: Path) -> dict[str, Any]:
    """What a whole run gives, to be compared."""
    model, args, kwargs = made
    result = fxprune.compile(model, RECIPE, args, kwargs, out=out)
    again = fxprune.load(out / "model.fxp")
    masked = fxprune.prune(fxprune.capture(model, args, kwargs), RECIPE)
    return {
        "certificate": bool(result.certificate),
        "state": dict(result.program.state_dict()),
        "saved": dict(again.state_dict()),
        "graph": str(result.program.graph) if len(result.program.graphs) == 1 else name,
        "masks": dict(masked.masks),
        "pt2": dict(load_pt2(out / "model.pt2").state_dict),
    }


@pytest.mark.thorough  # 14 whole runs: half a minute
def test_eight_threads_give_what_one_gives(tmp_path: Path) -> None:
    names = [*MODELS, "lenet", "lstm"]
    filters, loggers = list(warnings.filters), logging.getLogger("torch.export").filters[:]
    stderr = sys.stderr
    alone = {name: all_of_it(name, ZOO[name](), tmp_path / name) for name in MODELS}
    # Built before: a new model draws from the global generator, which threads share.
    made = [ZOO[name]() for name in names]
    with ThreadPoolExecutor(8) as pool:
        places = [tmp_path / f"{name}-{i}" for i, name in enumerate(names)]
        together = list(pool.map(all_of_it, names, made, places))
    for name, found in zip(names, together, strict=True):
        assert found.keys() == alone[name].keys()
        for key, value in found.items():
            assert is_same(value, alone[name][key]), (name, key)
    assert warnings.filters == filters
    assert logging.getLogger("torch.export").filters == loggers
    assert sys.stderr is stderr


def test_eight_threads_capture_and_prune_small_models_alike() -> None:
    def built(seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        return model

    def work(model: nn.Module) -> dict[str, Any]:
        program = fxprune.capture(model, (torch.zeros(2, 4),))
        masked = fxprune.prune(program, {"rule": RULES})
        final = fxprune.finalize(masked)
        assert fxprune.verify(final, masked)
        return dict(final.state_dict())

    alone = [work(built(0)), work(built(1))]
    # Built before: a new layer draws from the global generator, which threads share.
    models = [built(i % 2) for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(work, models)):
            assert is_same(found, alone[i % 2])


def test_what_other_threads_print_and_log_during_a_capture_is_shown(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def other() -> None:
        sys.stderr.write("from another thread\n")
        logging.getLogger("torch.fx.experimental.symbolic_shapes").warning("theirs")

    thread = threading.Thread(target=other)
    with quiet_export():
        logging.getLogger("torch.fx.experimental.symbolic_shapes").warning("ours")
        thread.start()
        thread.join()
        shown = capsys.readouterr().err
    assert shown.startswith("from another thread\n")
    assert "ours" not in shown
    assert [record.message for record in caplog.records] == ["theirs"]


def test_an_error_in_one_thread_leaves_the_lock_to_others() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("broken")

    with pytest.raises(fxprune.FxpruneError):
        fxprune.capture(Broken(), (torch.zeros(2, 2),))
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(fxprune.capture, nn.Linear(2, 2), (torch.zeros(2, 2),))
        assert list(work.result(60).state_dict()) == ["weight", "bias"]


# Global generators


def _states() -> tuple[Any, ...]:
    drawn: Any = np.random.get_state()
    kind, keys, *rest = drawn
    return torch.get_rng_state().tolist(), random.getstate(), (kind, keys.tolist(), *rest)


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())


X = torch.linspace(-1, 1, 2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
SEEDED = {"rule": RULES[:2]}


def _calls(folder: Path) -> dict[str, Callable[[], Any]]:
    """Every public function, called so that it asks for no randomness."""
    model = _net()
    program = fxprune.capture(model, (X,))
    masked = fxprune.prune(program, SEEDED)
    fxprune.save(masked, folder / "a.fxp")
    fxprune.export(masked, folder / "a.pt2")
    fxprune.export(masked, folder / "a.safetensors")
    write_masks(masked, folder / "masks.pt")
    plan(program, SEEDED).save(folder / "plan.json")
    return {
        "capture": lambda: fxprune.capture(model, (X,)),
        "prune": lambda: fxprune.prune(program, SEEDED),
        "finalize": lambda: fxprune.finalize(masked),
        "unmask": lambda: fxprune.unmask(masked),
        "verify": lambda: fxprune.verify(fxprune.finalize(masked), masked),
        "compile": lambda: fxprune.compile(model, {**SEEDED, "finalize": {}}, (X,)),
        "report": lambda: str(fxprune.report(masked)),
        "explain": lambda: str(explain(program, SEEDED)),
        "plan": lambda: str(plan(program, SEEDED)),
        "plan of random methods": lambda: plan(
            program, {"rule": [{"select": "*", "method": "random_unstructured", "amount": 1}]}
        ),
        "is_pruned": lambda: fxprune.is_pruned(masked),
        "load plan": lambda: fxprune.Plan.load(folder / "plan.json"),
        "save": lambda: fxprune.save(masked, folder / "b.fxp"),
        "load": lambda: fxprune.load(folder / "a.fxp"),
        "export pt2": lambda: fxprune.export(masked, folder / "b.pt2"),
        "export py": lambda: fxprune.export(masked, folder / "b.py"),
        "export onnx": lambda: fxprune.export(copy.deepcopy(masked).eval(), folder / "b.onnx"),
        "load_pt2": lambda: fxprune.capture(load_pt2(folder / "a.pt2")),
        "read_weights": lambda: read_weights(folder / "a.safetensors"),
        "masks": lambda: fit_masks(program, read_masks(folder / "masks.pt")),
        "functional": lambda: prune.l1_unstructured(copy.deepcopy(program), "0.weight", amount=2),
        "recipe": lambda: fxprune.Recipe.from_dict(SEEDED).to_dict(),
    }


def test_no_public_function_draws_from_a_global_generator(tmp_path: Path) -> None:
    calls = _calls(tmp_path)
    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        for name, call in calls.items():
            before = _states()
            call()
            assert _states() == before, name


def test_only_a_random_method_without_a_seed_draws(tmp_path: Path) -> None:
    program = fxprune.capture(_net(), (X,))
    before = _states()
    fxprune.prune(
        program, {"rule": [{"select": "*", "method": "random_unstructured", "amount": 1}]}
    )
    after = _states()
    assert after[0] != before[0]
    assert after[1:] == before[1:]
