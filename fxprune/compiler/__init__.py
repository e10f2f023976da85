"""One run of a recipe: prune, finalize, shrink, compile, plan, explain.

- `build`: `compile`: all that a recipe declares, from the model to certified files.
- `dry_run`: `plan`: the dry run of a recipe. Nothing is changed.
- `listening`: Watching a run of rules: what each one does, figure by figure, as the rows of a
  plan.
- `pipeline`: Pipelines: passes that declare what they need and give, checked before any of them
  runs.
- `recheck`: Checks a certificate again, later and elsewhere: what compile wrote against the model
  it took.
- `run`: The facade `prune`, `capture`, `finalize`, `unmask`: each copies the Program unless
  `inplace=True`.
- `shrinking`: `shrink`: cut dead channels out of a Program, and hold what is left to what there
  was.
- `verdicts`: `explain`: for each parameter, which rules take it, and what keeps the others from
  it.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from fxprune.compiler.build import Result, compile
from fxprune.compiler.dry_run import plan
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
from fxprune.compiler.verdicts import explain
