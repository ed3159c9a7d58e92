"""A policy in words, line by line: its rules, and what finds what in texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .policing import Policing
from .settings import Pii, Sentinel, Terms


def describe(policing: Policing) -> Iterator[str]:
    """What is in force."""
    finds = policing.finds()
    for name, filters, terms in policing.policy.named():
        whom = " ".join(map(str, filters)) or "for all calls"
        yield f"{name} ({whom}): {'; '.join(_terms(terms)) or 'nothing of its own'}"
        if terms.pii is not None and terms.pii.mode != "disabled":
            yield from _pii(terms.pii, finds.get(name, {}))
        if terms.sentinel is not None and terms.sentinel.mode != "disabled":
            yield f"  sentinel, {terms.sentinel.mode}: {', '.join(_sentinel(terms.sentinel))}"
    audit = policing.policy.audit
    kept = f"kept for {audit.keep_days} days" if audit.keep_days else "kept for ever"
    yield f"audit: {'every decision' if audit.allowed else 'what is refused, changed or found'}, {kept}"


def _terms(terms: Terms) -> Iterator[str]:
    for name in ("models", "deny_models", "providers", "deny_providers", "regions"):
        value = getattr(terms, name)
        if value or (value == () and name in ("models", "providers", "regions")):
            yield f"{name.replace('_', ' ')} {', '.join(value) or 'none'}"
    if terms.max_output_tokens is not None:
        yield f"at most {terms.max_output_tokens:,} output tokens"
    if terms.max_input_tokens is not None:
        yield f"at most {terms.max_input_tokens:,} input tokens"
    if terms.priced:
        yield "only what is priced"


def _pii(pii: Pii, finds: Mapping[str, Sequence[str]]) -> Iterator[str]:
    models = ", ".join(pii.models.values()) or "no model: names of people and places are not found"
    yield f"  pii, {pii.mode}, {', '.join(pii.languages)} ({models})"
    own: dict[str, str] = dict.fromkeys((*pii.patterns, *pii.words), "mask")
    actions = {**own, **pii.entities}
    for entity, action in actions.items():
        names = list(finds.get(entity, ()))
        said = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield f"    {entity}: {action}, by {said}"
    yield f"    what is no text: {pii.unscanned}; after {pii.timeout:g} s, or if it fails: {pii.on_failure}"


def _sentinel(sentinel: Sentinel) -> Iterator[str]:
    if sentinel.injection:
        yield "prompt injection"
    if sentinel.blocklist:
        yield f"a blocklist of {len(sentinel.blocklist)}"
    yield from sentinel.patterns
    if sentinel.classifier is not None:
        asked = sentinel.classifier if isinstance(sentinel.classifier, str) else "a function"
        yield f"a classifier ({asked})"
    yield f"after {sentinel.timeout:g} s, or if it fails: {sentinel.on_failure}"
