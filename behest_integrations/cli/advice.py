"""Advice in errors is for whoever wrote the program: `Meter(wait=30)`. Here a shell is at hand.

The same settings stand in `behest.toml`, under the same names: so one rule puts all of them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator

FILE = "behest.toml"
_CALL = "Meter("


def in_shell(text: str) -> str:
    """An error's text, with each `Meter(NAME=VALUE)` in it as a line of `behest.toml`."""
    said = [*_parts(text)]
    if not any(is_line for _, is_line in said):
        return text
    whole = "".join(f"`{part}`" if is_line else part for part, is_line in said)
    return f"{whole}\n(What stands in `…` goes to the top of {FILE}, above its first [table].)"


def toml_of(call: str) -> str | None:
    """`Meter(aliases={'m': 'gpt-4o'})` as `aliases."m" = "gpt-4o"`; None where it is none of a file."""
    try:
        node = ast.parse(call, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(node, ast.Call) or node.args or len(node.keywords) != 1:
        return None
    ((name, value),) = ((keyword.arg, keyword.value) for keyword in node.keywords)
    if name is None:
        return None
    try:
        if isinstance(value, ast.Dict) and len(value.keys) == 1 and value.keys[0] is not None:
            return f"{name}.{_value(value.keys[0])} = {_value(value.values[0])}"
        return f"{name} = {_value(value)}"
    except ValueError:
        return None


def _value(node: ast.expr) -> str:
    if isinstance(node, ast.Call):  # Price(input="1")
        return f"{{ {', '.join(f'{k.arg} = {_value(k.value)}' for k in node.keywords)} }}"
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return f"{{ {', '.join(f'{_value(k)} = {_value(v)}' for k, v in pairs if k is not None)} }}"
    if isinstance(node, (ast.List, ast.Tuple)):
        return f"[{', '.join(map(_value, node.elts))}]"
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, bool, int, float)):
        return json.dumps(node.value, ensure_ascii=False)
    raise ValueError(ast.dump(node))


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, and which of them is a line of a file."""
    done = 0
    while (start := text.find(_CALL, done)) >= 0:
        # The call ends at the first parenthesis with which it is whole.
        end = text.find(")", start)
        line = None
        while end >= 0 and (line := toml_of(text[start : end + 1])) is None:
            end = text.find(")", end + 1)
        if line is None:
            yield text[done : start + len(_CALL)], False
            done = start + len(_CALL)
        else:
            yield text[done:start], False
            yield line, True
            done = end + 1
    yield text[done:], False
