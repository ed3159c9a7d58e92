"""The texts of one call, looked through by the rules that apply to it: found, masked, or refused.

What was found is told by kind and count. A text is in no message, no log and no record of ours.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from ..rules.errors import PolicyRefused
from .placeholders import Placeholders, Restorer
from .sentinel import Guard
from .settings import Action, Pii, Sentinel
from .shield import Shield
from .texts import Text, changed, texts_of, unreadable

log = logging.getLogger("behest")

T = TypeVar("T")

_STRICTER = {"mask": 0, "redact": 1, "block": 2}
_MOST_AT_ONCE = 64
_slots = threading.BoundedSemaphore(_MOST_AT_ONCE)


class Screened(NamedTuple):
    """A request that may be sent.

    Attributes:
        body: another than was given where its texts were changed.
        restorer: puts back into the answer what was masked; None: nothing was.
        kind: what it is to the audit: ``allowed``, ``masked``, ``shadow``.
        found: kinds and counts; what was found in shadow is ``shadow:KIND``.
    """

    body: Mapping[str, Any]
    restorer: Restorer | None
    kind: str
    found: dict[str, int]


class Screen:
    """What one rule looks for in texts.

    Raises:
        MissingExtra: what it takes is not installed.
        ConfigError: it cannot be found by what is on.
    """

    def __init__(self, rule: str, pii: Pii | None, sentinel: Sentinel | None) -> None:
        self.rule = rule
        self.pii = pii if pii is not None and pii.mode != "disabled" else None
        self.sentinel = sentinel if sentinel is not None and sentinel.mode != "disabled" else None
        self.shield: Shield | None = None
        self.actions: dict[str, Action] = {}
        if self.pii is not None:
            own: dict[str, Action] = dict.fromkeys((*self.pii.patterns, *self.pii.words), "mask")
            self.actions = {**own, **self.pii.entities}
            self.shield = Shield(self.pii, self.actions)
        self.guard = Guard(self.sentinel) if self.sentinel is not None else None

    def __bool__(self) -> bool:
        return self.pii is not None or self.sentinel is not None


class _Span(NamedTuple):
    start: int
    end: int
    entity: str
    action: Action


def screen(
    screens: Sequence[Screen],
    body: Mapping[str, Any],
    *,
    can_change: bool = True,
    unread: Sequence[str] = (),
    quoted: bool = False,
) -> Screened:
    """Look a request's texts through.

    Args:
        can_change: whether the door can send another request than it was given.
        unread: kinds of content that go with it and are no texts.
        quoted: the answer is JSON all through.

    Raises:
        PolicyRefused: something in it blocks it, or could not be looked through.
    """
    found: Counter[str] = Counter()
    texts = texts_of(body)
    spans: dict[str, list[_Span]] = {}
    _check_unread(screens, Counter(unreadable(body)) + Counter(unread), found)
    for each in screens:
        if each.guard is not None:
            _guard(each, texts, found)
    for each in screens:
        if each.shield is not None:
            _shield(each, texts, spans, found)
    if not spans:
        return Screened(body, None, "shadow" if found else "allowed", dict(found))
    if not can_change:
        first = next(s for s in screens if s.pii is not None and s.pii.mode == "enforce")
        raise PolicyRefused(
            f"it has {_list(_counted(spans))} in it, which must be masked, and cannot be here: wrap the "
            "model itself (meter.langchain_model, meter.llama_index) or its client (meter.openai)",
            rule=first.rule,
            kind="pii",
            found=_counted(spans),
        )
    found.update(_counted(spans))
    placeholders = Placeholders(text for text, _ in texts)
    made = {text: _masked(text, listed, placeholders) for text, listed in spans.items()}
    restorer = Restorer(placeholders.texts, quoted=quoted) if placeholders.texts else None
    return Screened(changed(body, lambda text: made.get(text, text)), restorer, "masked", dict(found))


def _check_unread(screens: Sequence[Screen], unread: Mapping[str, int], found: Counter[str]) -> None:
    if not unread:
        return
    for each in screens:
        if each.pii is None:
            continue
        if each.pii.mode == "shadow":
            found.update({f"shadow:unscanned {kind}": count for kind, count in unread.items()})
        elif each.pii.unscanned == "refuse":
            raise PolicyRefused(
                f"it has {_list(unread)} in it, which cannot be looked through; whoever runs this can let it "
                'pass: [policy.pii] unscanned = "pass"',
                rule=each.rule,
                kind="unscanned",
                found=unread,
            )
        else:
            found.update({f"unscanned {kind}": count for kind, count in unread.items()})


def _shield(each: Screen, texts: Sequence[Text], spans: dict[str, list[_Span]], found: Counter[str]) -> None:
    pii, shield = each.pii, each.shield
    assert pii is not None
    assert shield is not None
    unique = dict.fromkeys(text for text, _ in texts)
    try:
        everything = bounded(lambda: {text: shield.find(text) for text in unique}, pii.timeout)
    except Exception as error:
        _failed(each.rule, pii.mode, pii.on_failure, "pii", error, found)
        return
    blocked: Counter[str] = Counter()
    for text, listed in everything.items():
        for one in listed:
            action = each.actions.get(one.entity, "mask")
            if pii.mode == "shadow":
                found[f"shadow:{one.entity}"] += 1
            elif action == "block":
                blocked[one.entity] += 1
            else:
                spans.setdefault(text, []).append(_Span(one.start, one.end, one.entity, action))
    if blocked:
        raise PolicyRefused(f"it has {_list(blocked)} in it", rule=each.rule, kind="pii", found=blocked)


def _guard(each: Screen, texts: Sequence[Text], found: Counter[str]) -> None:
    sentinel, guard = each.sentinel, each.guard
    assert sentinel is not None
    assert guard is not None
    unique = list(dict.fromkeys(text for text, trusted in texts if not trusted))
    try:
        hits = bounded(lambda: guard.find(unique), sentinel.timeout)
    except Exception as error:
        _failed(each.rule, sentinel.mode, sentinel.on_failure, "content", error, found)
        return
    if hits and sentinel.mode == "shadow":
        found.update({f"shadow:{name}": count for name, count in hits.items()})
    elif hits:
        raise PolicyRefused(f"it has {_list(hits)} in it", rule=each.rule, kind="content", found=hits)


def _failed(rule: str, mode: str, on_failure: str, kind: str, error: Exception, found: Counter[str]) -> None:
    # Not the error's own words: they may quote what was looked at.
    why = "in time" if isinstance(error, TimeoutError) else f"({type(error).__name__})"
    log.error("the texts of a call could not be looked through %s, by the rule %r", why, rule)
    if mode == "enforce" and on_failure == "refuse":
        raise PolicyRefused(
            f"its texts could not be looked through {why}", rule=rule, kind=kind, found={"failed": 1}
        ) from None
    found["failed"] += 1


def _masked(text: str, spans: Sequence[_Span], placeholders: Placeholders) -> str:
    """A text with what was found in it replaced; where findings overlap, by the strictest of them."""
    parts: list[str] = []
    at = 0
    for span in _apart(spans):
        parts.append(text[at : span.start])
        if span.action == "redact":
            parts.append(f"[{span.entity}]")
        else:
            parts.append(placeholders.of(span.entity, text[span.start : span.end]))
        at = span.end
    return "".join([*parts, text[at:]])


def _apart(spans: Sequence[_Span]) -> list[_Span]:
    whole: list[_Span] = []
    for span in sorted(spans):
        if whole and span.start < whole[-1].end:
            last = whole.pop()
            stricter = max(last, span, key=lambda s: _STRICTER[s.action])
            span = _Span(last.start, max(last.end, span.end), stricter.entity, stricter.action)
        whole.append(span)
    return whole


def _counted(spans: Mapping[str, Sequence[_Span]]) -> dict[str, int]:
    return dict(Counter(span.entity for listed in spans.values() for span in listed))


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def bounded(work: Callable[[], T], seconds: float) -> T:
    """What `work` returns, if it does so in time. One that does not goes on in a thread of its own.

    Raises:
        TimeoutError: it did not.
    """
    if not _slots.acquire(timeout=seconds):
        raise TimeoutError("too many others have not come to an end")
    done = threading.Event()
    result: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failed.append(error)
        finally:
            _slots.release()
            done.set()

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="behest-policy", daemon=True).start()
    if not done.wait(seconds):
        raise TimeoutError(f"not within {seconds:g} s")
    if failed:
        raise failed[0]
    return result[0]
