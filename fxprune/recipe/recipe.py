"""Recipes: what to prune and what to do after, as data from TOML, JSON, a dict or Python."""

from __future__ import annotations

import math
import os
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from fxprune.errors import FormatError, RecipeError
from fxprune.recipe.faults import explain, nested_too_deeply, refuse, rule_names, twins
from fxprune.recipe.nni import rules_from_nni
from fxprune.recipe.rule import Rule, data_fault, group_faults
from fxprune.recipe.select import ReadOptions, Table, as_tuple
from fxprune.rewrite import call_fault, name_fault
from fxprune.support import TOO_DEEP, parse_json, read_text
from fxprune.words import plain, show

_MOST_BYTES = 2**20
_MOST_DOTS = 2000  # in a line: tomllib takes time quadratic in the parts of a dotted key


def read_data(file: Path, where: str) -> object:
    """Return what a .toml or .json file holds; messages call it `where`."""
    return _parse(_text(file, where), file, where)


def _text(file: Path, where: str) -> str:
    if file.suffix.lower() not in (".toml", ".json"):
        raise RecipeError(f"{where}: the name does not end in .toml or .json; a recipe's does")
    try:
        return read_text(file, ".toml or .json", _MOST_BYTES)
    except FormatError as error:
        raise RecipeError(str(error)) from None


def _parse(text: str, file: Path, where: str) -> object:
    toml = file.suffix.lower() == ".toml"
    if toml and max(line.count(".") for line in text.split("\n")) > _MOST_DOTS:
        raise RecipeError(f"{where}: a line has more than {_MOST_DOTS} dots; break it up")
    try:
        return tomllib.loads(text) if toml else parse_json(text)
    except FormatError as error:
        raise RecipeError(f"{where}: {plain(str(error))}") from None
    except RecursionError:
        raise RecipeError(f"{where}: {TOO_DEEP}") from None
    except ValueError as error:
        raise RecipeError(f"{where}: this is not TOML: {plain(str(error))}") from None


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
        refuse([name_fault(name)])
        return name

    @field_validator("args")
    @classmethod
    def _fit(cls, args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        refuse([data_fault(args)])
        reading = cast("ReadOptions | None", info.context)
        if "name" in info.data and (reading is None or reading.loads_passes):
            refuse([call_fault(info.data["name"], args)])
        return args


_VERSION = 1


class Finalize(Table):
    """How to fold the masks into the weights.

    Args:
        zeros: "keep" the signs that masking gives (`-1 * 0` is `-0.0`), or "clean" for +0.0.

    Example:
        >>> Finalize().zeros
        'keep'
    """

    __init__ = Table.__init__

    zeros: Literal["keep", "clean"] = "keep"


class Shrink(Table):
    """How to cut dead channels out.

    Args:
        round_to: Leave a multiple of so many channels where some go.

    Example:
        >>> Shrink().round_to
        1
    """

    __init__ = Table.__init__

    round_to: int = Field(default=1, ge=1, strict=True)


class Export(Table):
    """Which files to write.

    Args:
        formats: Each of "pt2", "safetensors", "onnx" and "fxp" at most once.

    Example:
        >>> Export(formats=["onnx"]).formats
        ('onnx',)
    """

    __init__ = Table.__init__

    formats: tuple[Literal["pt2", "safetensors", "onnx", "fxp"], ...] = Field(
        default=("pt2", "safetensors"), json_schema_extra={"minItems": 1, "uniqueItems": True}
    )

    @field_validator("formats", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return as_tuple(value, "formats")

    @field_validator("formats")
    @classmethod
    def _once_each(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        twice = [name for name, times in Counter(formats).items() if times > 1]
        refuse(f"formats has '{name}' twice; name each format once" for name in twice)
        return formats


class Recipe(Table):
    """What to prune, rule by rule in order, and what to do after.

    Args:
        version: The version of recipes, 1.
        rules: At least one Rule; the tables `[[rule]]` of a file.
        passes: Passes to run after the rules, in order; the tables `[[pass]]` of a file.
        finalize: Whether and how to fold the masks; None for not.
        shrink: Whether and how to cut dead channels out; None for not.
        export: Whether to write files, and which; None for not.

    Raises:
        RecipeError: One line for each fault, with its place and the mend.

    Example:
        >>> recipe = Recipe(rules=[Rule(select="*.weight", method="l1_unstructured", amount=0.2)])
        >>> recipe.rules[0].name
        'rule-1'
    """

    __init__ = Table.__init__

    version: int = Field(default=_VERSION, json_schema_extra={"const": _VERSION})
    rules: tuple[Rule, ...] = Field(alias="rule", json_schema_extra={"minItems": 1})
    passes: tuple[PassCall, ...] = Field(
        default=(), alias="pass", json_schema_extra={"minItems": 1}
    )
    finalize: Finalize | None = None
    shrink: Shrink | None = None
    export: Export | None = None

    @field_validator("version")
    @classmethod
    def _is_known(cls, version: int) -> int:
        if version != _VERSION:
            refuse([f"version = {show(version)} is not known; write version = {_VERSION}"])
        return version

    @field_validator("rules", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return as_tuple(value, "rule")

    @field_validator("passes", mode="before")
    @classmethod
    def _in_order(cls, value: object) -> object:
        return as_tuple(value, "pass")

    @field_validator("rules")
    @classmethod
    def _together(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        refuse([*twins(rules), *group_faults(rules)])
        names = rule_names(rules)
        pairs = zip(rules, names, strict=True)
        return tuple(
            rule if rule.name else rule.model_copy(update={"name": name}) for rule, name in pairs
        )

    @classmethod
    def of(
        cls,
        recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
        *,
        allow_imports: bool = False,
    ) -> Recipe:
        """A recipe from whatever stands for one: a path, a dict or a Recipe.

        Args:
            recipe: The path of a .toml or .json file, the data of one, or a Recipe.
            allow_imports: Whether data may name a class to import.

        Raises:
            RecipeError: It is none of these, or it is at fault.

        Example:
            >>> rule = {"select": "*.bias", "method": "random_unstructured", "amount": 3}
            >>> Recipe.of({"rule": [rule]}).rules[0].amount
            3
        """
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, str | os.PathLike):
            return cls.load(recipe, allow_imports=allow_imports)
        return cls.from_dict(recipe, allow_imports=allow_imports)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, allow_imports: bool = False) -> Recipe:
        """Read a recipe from a file; paths in it are taken from the file's folder.

        Args:
            path: A .toml or .json file.
            allow_imports: Whether it may name a class to import; nothing is imported here.

        Raises:
            RecipeError: The file cannot be read, or the recipe is at fault.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = Path(folder, "recipe.toml")
            ...     _ = path.write_text("rule = [{select = '*.weight', method = 'identity'}]")
            ...     recipe = Recipe.load(path)
            >>> recipe.rules[0].select.path
            ('*.weight',)
        """
        file = Path(path)
        where = plain(str(file))
        return cls._from(read_data(file, where), where, ReadOptions(allow_imports, file.parent))

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        *,
        allow_imports: bool = False,
        gives_masks: bool = False,
        where: str = "recipe",
    ) -> Recipe:
        """A recipe from the data that a file would hold.

        Args:
            data: The tables.
            allow_imports: Whether it may name a class to import; nothing is imported here.
            gives_masks: Whether masks are handed over beside it, so that it need not name files.
            where: What error messages call the data.

        Raises:
            RecipeError: The recipe is at fault.

        Example:
            >>> rule = {"select": {"op": "linear"}, "method": "identity"}
            >>> Recipe.from_dict({"version": 1, "rule": [rule], "finalize": {}}).finalize
            Finalize(zeros='keep')
        """
        return cls._from(data, where, ReadOptions(allow_imports, None, gives_masks))

    @classmethod
    def from_nni(
        cls, config_list: Sequence[Mapping[str, Any]], *, pruner: str = "LevelPruner"
    ) -> Recipe:
        """NNI's config_list (of NNI 3, and the keys of NNI 2 that 3 takes) as a recipe.

        A module is meant by `op_names` or `op_names_re` (which match at the start of a module's
        name), among `op_types`, but for `exclude_*`; a later entry decides about the modules of
        earlier ones, and an entry with `exclude` takes its modules out of all. What was written
        from NNI's documentation, and not compared with runs of NNI, differs in this: shares are
        rounded, where NNI cuts them off; among equal scores the first goes; biases that follow
        their weight's channels by NNI's default are left whole.

        Args:
            config_list: The entries.
            pruner: The class that NNI was to be given them: "LevelPruner", "L1NormPruner" or
                "L2NormPruner"; it says what the granularity "default" and channels' scores are.

        Raises:
            RecipeError: Names each entry and key that is at fault or has no counterpart.

        Example:
            >>> entry = {"op_types": ["Conv2d"], "sparse_ratio": 0.5, "granularity": "out_channel"}
            >>> rule = Recipe.from_nni([entry]).rules[0]
            >>> rule.select.module, rule.method, rule.n, rule.dim
            (('Conv2d',), 'ln_structured', 1, 0)
        """
        rules = rules_from_nni(config_list, pruner=pruner)
        return cls.from_dict({"rule": rules}, where="config_list")

    @classmethod
    def _from(cls, data: object, where: str, reading: ReadOptions) -> Recipe:
        if not isinstance(data, Mapping):
            raise RecipeError(
                f"{where}: {show(data)} is not a recipe; a recipe has [[rule]] tables"
            )
        table = dict(cast("Mapping[str, Any]", data))
        if nested_too_deeply(table):
            raise RecipeError(f"{where}: {TOO_DEEP}")
        validate = partial(cls.model_validate, table, by_alias=True, by_name=False)
        try:
            # Passes are imported, and torch with them, once all else is right.
            validate(context=reading._replace(loads_passes=False))
            return validate(context=reading)
        except ValidationError as error:
            raise RecipeError(explain(error, table, model=cls, where=where)) from None

    def to_dict(self) -> dict[str, Any]:
        """The recipe as data, as `from_dict` takes it; keys that have their default are left out.

        A mask that Python handed over is no data: `from_dict` asks for its file.

        Example:
            >>> rule = {"select": {"op": ["linear"]}, "method": "l1_unstructured", "amount": 0.2}
            >>> Recipe.from_dict({"rule": [rule]}).to_dict()
            {'rule': [{'select': {'op': ['linear']}, 'method': 'l1_unstructured', 'amount': 0.2}]}
        """
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for at, rule in enumerate(data["rule"], 1):
            if rule.get("name") == f"rule-{at}":
                del rule["name"]
            if rule.get("dim") == (0 if rule.get("coupled") else -1):
                del rule["dim"]
            if rule.get("n") in (math.inf, -math.inf):  # JSON has no infinity
                rule["n"] = str(rule["n"])
        return data
