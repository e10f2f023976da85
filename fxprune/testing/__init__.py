"""Test your own pass or model with what fxprune is tested with; needs the extra `testing`.

`check_pass` and `check_model` run everything there is and shrink what fails; the strategies and the
assertions are for tests of your own.

- `architecture`: Networks as data (`Arch` and its layers), and the modules that are built from
  them.
- `assert_pass`: What every pass must hold: promise, purity, idempotence, refusals, all or
  nothing.
- `assert_scores`: Scores held to their plain form.
- `calls`: Calls of torch.nn.utils.prune's functions as data.
- `code`: A failing network as a script.
- `comparing`: Models compared, bit for bit or closely.
- `drawing`: Hypothesis strategies: networks, Programs, recipes, tensors, calls.
- `model_checks`: `check_model`: everything there is, on a model of your own.
- `oracle`: What torch.nn.utils.prune means, on a model that reads every weight masked; ties.
- `parity`: A sequence of calls held to torch.nn.utils.prune.
- `pass_checks`: `check_pass`: everything there is, on a pass of your own.
- `searching`: The smallest failure among drawn ones.
"""

from __future__ import annotations

import importlib.util

from fxprune.errors import MissingError

if importlib.util.find_spec("hypothesis") is None:
    raise MissingError(
        "fxprune.testing draws with hypothesis, which is not installed; run "
        '`pip install "fxprune[testing]"`'
    )

from fxprune.testing.architecture import Arch, build
from fxprune.testing.assert_pass import (
    assert_frozen,
    assert_idempotent,
    assert_promise,
    assert_pure,
    assert_refuses,
    assert_transactional,
)
from fxprune.testing.assert_scores import assert_scores
from fxprune.testing.calls import Call
from fxprune.testing.code import network_code
from fxprune.testing.comparing import DifferenceError, assert_close, assert_same
from fxprune.testing.drawing import (
    architectures,
    calibrations,
    programs,
    pruning_sequences,
    recipes,
    tied_tensors,
)
from fxprune.testing.model_checks import check_model
from fxprune.testing.parity import assert_parity
from fxprune.testing.pass_checks import Checked, check_pass

__all__ = [
    "Arch",
    "Call",
    "Checked",
    "DifferenceError",
    "architectures",
    "assert_close",
    "assert_frozen",
    "assert_idempotent",
    "assert_parity",
    "assert_promise",
    "assert_pure",
    "assert_refuses",
    "assert_same",
    "assert_scores",
    "assert_transactional",
    "build",
    "calibrations",
    "check_model",
    "check_pass",
    "network_code",
    "programs",
    "pruning_sequences",
    "recipes",
    "tied_tensors",
]
