"""Reading, overriding and writing configurations, and saying in one line what is wrong with one."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import operator
import re
import tomllib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from pydantic import TypeAdapter

from genflow.config import Config

Arguments = TypeVar("Arguments")
_ADAPTER = TypeAdapter(Config)
_PACKAGE = Path(__file__).resolve().parent
_RECIPES = (_PACKAGE / "recipes", _PACKAGE.parent / "train" / "configs")  # in a wheel; in a checkout


def recipes() -> list[str]:
    """Return the names of the recipes that come with genflow."""
    return sorted(path.stem for folder in _RECIPES for path in folder.glob("*.toml"))


def find_recipe(name: str) -> Path:
    """Return the path of a TOML file, given as a path or as the name of a recipe.

    Raises ``ValueError`` naming the nearest recipe if there is none.
    """
    places = [Path(name), *(folder / f"{name}.toml" for folder in _RECIPES)]
    for place in places:
        if place.is_file():
            return place
    raise ValueError(f"there is no recipe or file {name!r}; {_known(name)}")


def _known(name: str) -> str:
    """Name the recipe that is nearest, or those that train in minutes and the number of the others."""
    near = difflib.get_close_matches(name, recipes(), n=1)
    if near:
        return f"did you mean {near[0]}?"
    small = [each for each in recipes() if each.startswith(("demo", "tiny"))]
    others = len(recipes()) - len(small)
    return f"there are {', '.join(small)} and {others} published ones, which genflow train --help lists"


def load_config(path: Path) -> Config:
    """Read a TOML file strictly.

    Raises ``ValueError``, one line, for a file that is not TOML, an unknown key (with the nearest valid one), a wrong
    type or a value out of range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    return _validate(values, str(path))


def override(config: Config, arguments: Sequence[str], *, prog: str, about: str) -> Config:
    """Apply ``--section.field value`` arguments; ``--help`` prints every field with its meaning and exits.

    Raises ``ValueError``, one line, for options that do not exist or values that do not fit.
    """
    changed = parse_arguments(Config, arguments, prog=prog, about=about, default=config)
    return _validate(json.loads(_ADAPTER.dump_json(changed)), "the command line")


def parse_arguments(
    kind: type[Arguments], arguments: Sequence[str], *, prog: str, about: str, default: Arguments | None = None
) -> Arguments:
    """Fill a dataclass from the command line; ``--help`` prints its fields with their meaning and exits.

    Raises ``ValueError``, one line, for options that do not exist or values that do not fit.
    """
    import tyro

    shown, complaints = io.StringIO(), io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(complaints):
            return tyro.cli(
                kind, args=list(arguments), prog=prog, description=about, config=(tyro.conf.AvoidSubcommands,), **given
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(_one_line(complaints.getvalue())) from None
        print(shown.getvalue())  # noqa: T201 (the help page)
        raise


def to_toml(config: Config) -> str:
    """Write a configuration as TOML that ``load_config`` reads back unchanged."""
    return "\n".join(_toml_lines(json.loads(_ADAPTER.dump_json(config)), ())) + "\n"


def to_flat(config: Config) -> dict[str, int | float | str | bool]:
    """Return ``{"optim.lr": 0.001, …}``, lists as strings: what experiment trackers take."""
    return dict(_flatten(json.loads(_ADAPTER.dump_json(config)), ""))


def _flatten(table: dict[str, Any], prefix: str) -> Iterator[tuple[str, int | float | str | bool]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value) if isinstance(value, list) else value


def _toml_lines(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield f"\n[{'.'.join(path)}]"
    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{key} = {json.dumps(value)}"  # JSON's scalars and lists are TOML's too
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _toml_lines(value, (*path, key))


def _validate(values: dict[str, Any], source: str) -> Config:
    try:
        return _ADAPTER.validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        raise ValueError(f"{source}: {_explain(error.errors()[0], values)}") from None
    except TypeError:
        raise ValueError(f"{source}: it holds a date or a time, which no key takes") from None


def _explain(error: Any, values: dict[str, Any]) -> str:
    """Say in one line what is wrong with a configuration and what would be right."""
    path = _in_file([str(part) for part in error["loc"]], values)
    where = ".".join(path)
    match error["type"]:
        case "unexpected_keyword_argument":
            return f"unknown key {where}{_nearest(path[-1], _valid_keys(path[:-1], values))}"
        case "union_tag_invalid" | "union_tag_not_found":
            given = f"is {error['ctx']['tag']!r}" if "tag" in error["ctx"] else "is missing"
            return f"{where}.type {given}, allowed are {', '.join(m.type for m in _members(path, values)[0])}"
        case "string_pattern_mismatch":
            given = json.dumps(error["input"])
            return f"{where} = {given}: use letters, digits, _ . + and -, and begin with a letter, a digit or _"
        case _:
            message = error["msg"][0].lower() + error["msg"][1:]
            return f"{where} = {json.dumps(error['input'])}: {message}"


def _in_file(location: list[str], values: Any) -> list[str]:
    """Drop from an error's location the names of union members, which are not keys of the file."""
    path: list[str] = []
    for k, part in enumerate(location):
        if isinstance(values, dict) and part not in values and values.get("type") == part and k < len(location) - 1:
            continue
        path.append(part)
        values = values.get(part) if isinstance(values, dict) else None
    return path


def _members(path: list[str], values: Any) -> tuple[list[Any], Any]:
    """Return the dataclasses that the table at ``path`` may be, and the one that its ``type`` chooses."""
    members: list[Any] = [Config]
    chosen: Any = Config
    for part in path:
        values = values[part]
        hint = typing.get_type_hints(chosen)[part]
        members = [m for m in (typing.get_args(hint) or (hint,)) if dataclasses.is_dataclass(m)]
        chosen = next((m for m in members if m.__dict__.get("type") == values.get("type")), members[0])
    return members, chosen


def _valid_keys(path: list[str], values: Any) -> list[str]:
    """Return the keys allowed in the table at ``path``."""
    return [f.name for f in dataclasses.fields(_members(path, values)[1])]


def _nearest(given: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(allowed)}"


def _one_line(complaint: str) -> str:
    """Reduce tyro's box (a title, what is wrong, a rule, what might be meant) to one line."""
    lines = [re.sub(r"\s+|^-+$", " ", line.strip(" │╭╰─╮╯")).strip() for line in complaint.splitlines()]
    body = itertools.dropwhile(operator.not_, lines[1:])  # without Unicode a rule follows the title
    said = " ".join(itertools.takewhile(bool, body)) or "the command line is not understood"
    near = re.search(r"Perhaps you meant:?\s+(--\S+)", " ".join(lines))
    if re.search(r"invalid choice .* argument '--[\w.-]+\.type'", said):
        return said.rstrip(". ") + "; a type comes with options of its own, and is chosen in a recipe's TOML file"
    return said + (f"; did you mean {near[1]}?" if near else "") + " (see --help)"
