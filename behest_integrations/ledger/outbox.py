"""What is to be told to somebody outside: written with what it is about, kept until it has been told.

A message is known by its id and by whom it goes to. One that is there already is not written again, also
when it has been told long ago: what is told once a window is told once, whoever finds it out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

NOBODY = ""
"""The recipient of what is told to none: it only says that something has been done, or when to look again."""


@dataclass(slots=True)
class Message:
    """A message to one recipient.

    Attributes:
        id: of what is told; the same for every recipient, and each time that it is tried.
        sink: the recipient's name.
        body: JSON.
        at, due: when it was written, and when it is to be tried next, in ms since 1970.
        done: when it was told, or given up; None: not yet.
        error: what went wrong last.
    """

    id: str
    sink: str
    at: int
    body: str
    due: int
    tries: int = 0
    done: int | None = None
    error: str = ""


def message_id(*about: object) -> str:
    """The id of what is told about these: the same for whoever finds it out."""
    return hashlib.sha256(repr(about).encode()).hexdigest()[:32]
