"""What is wrong with a settings file or a request, by the names that stand in it, and what may have
been meant.

pydantic says which branch of a union did not hold, by names of ours; a person is told where in the
file it is, and what could stand there. Values are not repeated: they may be secret, or a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .near import near

_WANTED = {
    "string_type": "text, in quotes",
    "string_sub_type": "text, in quotes",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list, in [ ]",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
"""What could stand there, by what pydantic calls that it does not."""


_JSON = {**_WANTED, **{name: "an object" for name, words in _WANTED.items() if words == "a table"}}
_JSON |= {"string_type": "text", "string_sub_type": "text", "list_type": "a list"}


class Problem(NamedTuple):
    """What is wrong at one place.

    Attributes:
        place: as it stands in the file, with dots.
        said: what could stand there instead.
    """

    place: str
    said: str

    def __str__(self) -> str:
        return f"{self.place}: {self.said}"


def say_problems(error: ValidationError, model: type[BaseModel], data: object) -> str:
    """What a validation of a file's `data` against `model` found, problem by problem."""
    return "; ".join(map(str, problems(error, model, data)))


def problems_of_json(error: ValidationError, model: type[BaseModel], data: object) -> list[Problem]:
    """What a validation of a request's `data` against `model` found."""
    return problems(error, model, data, _JSON)


def problems(
    error: ValidationError, model: type[BaseModel], data: object, wanted: Mapping[str, str] = _WANTED
) -> list[Problem]:
    """What a validation of `data` against `model` found, by place.

    Args:
        wanted: what could stand there, by what pydantic calls that it does not.
    """
    by_place: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for problem in error.errors(include_url=False, include_context=True):
        by_place.setdefault(_place(problem, data), []).append(problem)
    said = []
    for place, problems in by_place.items():
        # Where a table stands, what is wrong inside of it is said, not that it is no text.
        inside = any(other[: len(place)] == place and other != place for other in by_place)
        if not (inside and all(p["type"] in _WANTED for p in problems)):
            said.append(Problem(".".join(map(str, place)), _say(problems, model, place, wanted)))
    return said


def _place(problem: ErrorDetails, data: Any) -> tuple[str | int, ...]:
    """Where in the file: without what stands in the location for a branch of a union."""
    place: list[str | int] = []
    location = problem["loc"]
    for i, part in enumerate(location):
        stands = part in data if isinstance(data, Mapping) else isinstance(data, list)
        if stands and (isinstance(data, Mapping) or isinstance(part, int)):
            data = data[part]
        elif not (problem["type"] == "missing" and i == len(location) - 1):
            continue
        place.append(part)
    return tuple(place)


def _say(
    problems: Sequence[ErrorDetails],
    model: type[BaseModel],
    place: Sequence[str | int],
    words: Mapping[str, str],
) -> str:
    wanted = list(dict.fromkeys(words[p["type"]] for p in problems if p["type"] in words))
    others = [p for p in problems if p["type"] not in _WANTED]
    if others:
        return _say_one(others[0], model, place)
    if words is _WANTED and isinstance(problems[0]["input"], float) and "text, in quotes" in wanted:
        setting = f"{place[-1]} = " if isinstance(place[-1], str) else ""
        return f'write it as text: {setting}"{problems[0]["input"]}"'  # a number is nobody's secret
    return f"it must be {', or '.join(wanted)}"


def _say_one(problem: ErrorDetails, model: type[BaseModel], place: Sequence[str | int]) -> str:
    if problem["type"] == "missing":
        return "it is missing"
    if problem["type"] == "literal_error":
        return f"one of {problem['ctx']['expected']}"
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return message[:1].lower() + message[1:]
    known = [name for table in _tables(model, place[:-1]) for name in table.model_fields]
    close = near(str(place[-1]), known, 2)
    if close:
        return f"there is no such setting; did you mean {' or '.join(close)}?"
    return f"there is no such setting; known: {', '.join(dict.fromkeys(known))}"


def _tables(wanted: Any, place: Sequence[str | int]) -> Iterator[type[BaseModel]]:
    """The tables that may stand at a place inside of what is wanted there."""
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        if not place:
            yield wanted
        elif (field := wanted.model_fields.get(str(place[0]))) is not None:
            yield from _tables(field.annotation, place[1:])
    elif get_origin(wanted) in (dict, list):
        if place:
            yield from _tables(get_args(wanted)[-1], place[1:])
    else:
        for branch in get_args(wanted):
            yield from _tables(branch, place)
