"""Somebody's program, run under a meter as it is."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Sequence

from ..integrations.kit.refusals import refusal_in
from ..meter import Meter
from ..rules.errors import CallRefused


def run_program(meter: Meter, program: str, args: Sequence[str]) -> tuple[int, CallRefused | None]:
    """Run a Python file as `python FILE ARGS` would, with all its model calls metered.

    Returns:
        Its exit code, and the refusal that has ended it, if one has.
    """
    argv, path = sys.argv[:], sys.path[:]
    sys.argv = [program, *args]
    sys.path[0] = os.path.dirname(os.path.abspath(program))
    try:
        with meter.instrument():
            runpy.run_path(program, run_name="__main__")
    except SystemExit as stop:
        return _code(stop.code), refusal_in(stop)
    except KeyboardInterrupt:
        return 130, None
    except BaseException as error:
        refusal = refusal_in(error)
        if refusal is None:
            traceback.print_exc()
        return 1, refusal
    finally:
        sys.argv, sys.path = argv, path
    return 0, None


def _code(said: object) -> int:
    """What the interpreter makes of `sys.exit(said)`."""
    if said is None:
        return 0
    if isinstance(said, int):
        return said
    print(said, file=sys.stderr)
    return 1
