"""Frozen groups of options that refuse what they do not know, and what is said about it.

Every problem of what a user gave is reported in one :class:`InputError`, each with the place where it stands and, for a
misspelt name, the nearest one.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what, where and what to do.

    Scripts print the message without a traceback and exit with code 2.
    """


class Section(BaseModel):
    """A frozen group of options; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)


def validated(section: type[SectionT], content: Mapping[str, Any], source: str) -> SectionT:
    """``section`` built from ``content``; every problem in one InputError that names ``source``."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        found: dict[str, dict[str, str]] = {}  # place -> what is wrong -> what was given
        for problem in error.errors():
            place = _place(problem["loc"], content, missing=problem["type"] == "missing")
            if problem["type"] == "extra_forbidden":
                what, given = f"unknown key{nearest(str(place[-1]), _names_at(section, problem['loc'][:-1]))}", ""
            elif problem["type"] == "missing":
                what, given = "required, but missing", ""
            else:
                what = _plainly(problem["msg"].removeprefix("Value error, "))
                plain = not isinstance(problem["input"], (dict, Section))
                given = f" (given {problem['input']!r}{_quoted(problem)})" if plain else ""
            found.setdefault(".".join(map(str, place)), {})[what] = given
        lines = [
            f"{f'{place}: ' if place else ''}{line}"
            for place, whats in found.items()
            for line in f"{_alternatives(list(whats))}{next(iter(whats.values()))}".splitlines()
            # a problem inside says more than that no branch of the union around it fits
            if not any(other.startswith(f"{place}.") for other in found)
        ]
        raise InputError(f"{source}:\n  " + "\n  ".join(lines)) from None


def _place(loc: tuple[int | str, ...], content: Any, *, missing: bool) -> list[int | str]:
    """Where a problem stands in ``content``, without the names that pydantic gives to the branches of a union."""
    place: list[int | str] = []
    for i, part in enumerate(loc):
        if isinstance(content, (list, tuple)):
            content = dict(enumerate(content))
        if isinstance(content, Mapping) and part in content:
            content = content[part]
            place.append(part)
        elif missing and i == len(loc) - 1:
            place.append(part)
    return place


def _plainly(what: str) -> str:
    """pydantic's words for what YAML has."""
    what = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping (key: value)", what)
    return what.replace("a valid tuple", "a list (a dash before each item)")


def _quoted(problem: Mapping[str, Any]) -> str:
    """What to do about a number or a truth value where a name is wanted: YAML reads ``0`` and ``no`` as such."""
    given = problem["input"]
    if problem["type"] != "string_type" or not isinstance(given, (bool, int, float)):
        return ""
    read = "YAML reads no, off, yes and on as truth values" if isinstance(given, bool) else "YAML reads it as a number"
    return f": {read}; write a name in quotes"


def _alternatives(whats: list[str]) -> str:
    """Several reasons of one place: those of the branches of a union, none of which fits."""
    prefix = "Input should be "
    if len(whats) > 1 and all(what.startswith(prefix) for what in whats):
        return prefix + " or ".join(what.removeprefix(prefix) for what in whats)
    return "; ".join(whats)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, else the list of them."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names[:20])}" if names else ""


def unknown(name: str, known: Iterable[str], place: str, what: str) -> list[str]:
    """One problem if ``name`` is not known, none if it is."""
    known = list(known)
    return [] if name in known else [f"{place}: unknown {what} {name!r}{nearest(name, known)}"]


def _names_at(section: type[BaseModel], place: tuple[Any, ...]) -> list[str]:
    """The option names of the section that stands at ``place`` below ``section``."""
    sections: list[Any] = [section]
    for part in place:
        following: list[Any] = []
        for kind in sections:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                if part in kind.model_fields:
                    following += _unwrapped(kind.model_fields[part].annotation)
                elif kind.__name__ == part:  # pydantic names the branch of a union in the place
                    following.append(kind)
            elif get_origin(kind) in (dict, tuple, list):
                following += _unwrapped(get_args(kind)[1 if get_origin(kind) is dict else 0])
        sections = following or sections
    return [n for kind in sections if isinstance(kind, type) and issubclass(kind, BaseModel) for n in kind.model_fields]


def _unwrapped(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _unwrapped(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for branch in get_args(annotation) for kind in _unwrapped(branch)]
    return [annotation]
