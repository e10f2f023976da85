"""One run of a recipe: prune, finalize, shrink, compile, plan, explain.

- `build`: `compile`: all that a recipe declares, from the model to certified files.
- `dry_run`: `plan` and `explain`: what a recipe would do. Nothing is changed.
- `listening`: What each rule of a run does, as rows of a plan, and whether it is as planned.
- `pipeline`: Passes that declare what they need and give, and the pipelines of a recipe's rules.
- `recheck`: A certificate checked again, later and elsewhere.
- `run`: `capture`, `prune`, `finalize`, `unmask`, and the run of passes that they share.
- `shrinking`: `shrink`: channels cut out, and outputs compared with those before.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from fxprune.compiler.build import Result, compile
from fxprune.compiler.dry_run import explain, plan
from fxprune.compiler.pipeline import Pipeline, Stage, Trace, find_coupling, stage_of, stages_of
from fxprune.compiler.recheck import Basis, read_certificate
from fxprune.compiler.run import (
    RecipeLike,
    capture,
    edit,
    finalize,
    is_pruned,
    prune,
    run_stages,
    unmask,
)
from fxprune.compiler.shrinking import shrink
