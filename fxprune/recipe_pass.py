"""`PassCall`: a pass that a recipe runs by name, after its rules."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from fxprune.catalog import call_fault, pass_fault
from fxprune.recipe_errors import refuse
from fxprune.recipe_ranks import data_fault
from fxprune.recipe_select import Table

__all__ = ["PassCall"]


class PassCall(Table):
    """A pass to run after the rules and before finalize; a table `[[pass]]` of a file.

    Args:
        name: The name of a pass of any installed distribution; `fxprune passes` lists them.
        args: Its options.

    Raises:
        RecipeError: There is no such pass, or it does not take these options.

    Example:
        >>> PassCall(name="unmask", args={"names": ["conv1.weight"]}).name
        'unmask'
    """

    __init__ = Table.__init__

    name: Annotated[str, Field(min_length=1)]
    args: dict[str, Any] = Field(default_factory=dict[str, Any], validate_default=True)

    @field_validator("name")
    @classmethod
    def _is_there(cls, name: str) -> str:
        refuse([call_fault(name)])
        return name

    @field_validator("args")
    @classmethod
    def _fit(cls, args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        refuse([data_fault(args)])
        if "name" in info.data:
            refuse([pass_fault(info.data["name"], args)])
        return args
