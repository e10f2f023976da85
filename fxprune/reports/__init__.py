"""What was pruned, as records, tables, text and pictures.

- `explanation`: `Explanation`: what each rule does to each parameter, as a table and as JSON.
- `picture`: A picture of channel groups: which parameters make channels, which others they run
  through.
- `plans`: `Plan`: what a recipe would do to a model, as a table and JSON, its `diff`, and its
  file.
- `rows`: The rows of reports and plans: what is left of each parameter, and which rules made it
  so.
- `shrink`: What shrinks did, for people and as JSON: sizes, costs, widths, and what stayed and
  why.
- `summary`: `Report`: what is zero in a Program, which rule made it so, and how the rules went.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from fxprune.reports.explanation import Explanation, ParameterExplanation, RuleExplanation
from fxprune.reports.picture import draw_channels
from fxprune.reports.plans import Plan, PlanDiff, recipe_of
from fxprune.reports.rows import ParameterRow, PlannedParameter, record_data, rows_of
from fxprune.reports.summary import Report, report
