"""A policy in force: asked about each call, it allows, or raises which rule does not.

It makes no calls and writes nothing. What it found is in the `Verdict`: kinds and counts, never text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..rules.attribution import Attribution
from ..rules.errors import PolicyRefused
from .places import region_of_host
from .settings import Policy, Terms, applies

if TYPE_CHECKING:
    from .screening import Screen, Screened


class Asked(NamedTuple):
    """A call, as far as a policy's terms are about it.

    Attributes:
        models: the one that is sent, and others that it says may answer.
        are_all: whether those are all that may answer, as far as its fields say.
        stands_for: the name that a model's stands for, by aliases; and its plain names.
        provider: the price list's id, if known.
        where: the server's URL, if known.
        input_tokens: from above; None: it continues what is stored elsewhere.
        output_limit: that the caller has set; None: none; 0: there is no output.
        least_output: what the request needs at least.
        can_limit: whether the door can send an output limit of ours.
        priced: whether the price of a model is known.
    """

    who: Attribution
    models: Sequence[str]
    are_all: bool
    stands_for: Callable[[str], tuple[str, ...]]
    provider: str | None
    where: str
    input_tokens: int | None
    output_limit: int | None
    least_output: int
    can_limit: bool
    priced: Callable[[str], bool]


class Verdict:
    """What was decided of a call that may go ahead.

    Attributes:
        rules: the names of the rules that apply to it.
        ceiling: the output limit to send where the caller sets none.
        kind: what it is to the audit: ``allowed``, ``masked`` or ``shadow``.
        found: what was found in its texts: kinds and counts.
    """

    __slots__ = ("ceiling", "found", "kind", "rules", "terms")

    def __init__(self, terms: Sequence[tuple[str, Terms]], ceiling: int | None) -> None:
        self.terms = terms
        self.rules = tuple(name for name, _ in terms)
        self.ceiling = ceiling
        self.kind = "allowed"
        self.found: dict[str, int] = {}


class Policing:
    """A policy in force.

    Raises:
        ConfigError: something in it cannot be used.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._listed = policy.named()
        self._screens = {
            name: found
            for name, _, terms in self._listed
            if terms.pii is not None or terms.sentinel is not None
            if (found := _screen_of(name, terms))
        }
        self.screening = bool(self._screens)
        """Whether texts are looked through at all."""
        self._places = {host.lower(): region.lower() for host, region in policy.places.items()}

    def admit(self, asked: Asked) -> Verdict:
        """Decide whether a call may be made as it is; its texts are another matter.

        Raises:
            PolicyRefused: a rule forbids it.
        """
        verdict = self.terms_for(asked.who)
        for name, each in verdict.terms:
            self._check(name, each, asked)
        return verdict

    def terms_for(self, who: Attribution) -> Verdict:
        """The rules that apply to somebody's calls."""
        terms = [(name, terms) for name, filters, terms in self._listed if applies(filters, who)]
        limits = [most for _, each in terms if (most := each.max_output_tokens) is not None]
        return Verdict(terms, min(limits, default=None))

    def screen(
        self,
        verdict: Verdict,
        body: Mapping[str, Any],
        *,
        can_change: bool = True,
        unread: Sequence[str] = (),
    ) -> Screened | None:
        """Look the texts of a call through, by the rules of its verdict; None where none does.

        Args:
            can_change: whether the door can send another request than it was given.
            unread: kinds of content that go with it and are no texts.

        Raises:
            PolicyRefused: something in it blocks it.
        """
        screens = [s for name in verdict.rules if (s := self._screens.get(name)) is not None]
        if not screens:
            return None
        from .screening import screen

        found = screen(screens, body, can_change=can_change, unread=unread, quoted=_asks_json(body))
        verdict.kind, verdict.found = found.kind, found.found
        return found

    def finds(self) -> dict[str, dict[str, Sequence[str]]]:
        """By rule: what finds each kind of what is somebody's own."""
        return {name: dict(s.shield.on) for name, s in self._screens.items() if s.shield is not None}

    def _check(self, rule: str, terms: Terms, asked: Asked) -> None:
        if not asked.are_all and (terms.models is not None or terms.deny_models or terms.priced):
            message = "the request names models that may answer besides in a way that is not known"
            raise PolicyRefused(message, rule=rule, kind="models")
        for model in asked.models:
            self._check_model(rule, terms, model, asked)
        if terms.providers is not None or terms.deny_providers:
            self._check_provider(rule, terms, asked)
        if terms.regions is not None:
            self._check_region(rule, terms.regions, asked)
        most = terms.max_input_tokens
        if most is not None and (asked.input_tokens is None or asked.input_tokens > most):
            said = "has as many tokens as are stored elsewhere"
            if asked.input_tokens is not None:
                said = f"may have {asked.input_tokens:,} tokens"
            raise PolicyRefused(f"its input {said}; allowed are {most:,}", rule=rule, kind="context")
        if terms.max_output_tokens is not None and asked.output_limit != 0:
            _check_output(rule, terms.max_output_tokens, asked)

    def _check_model(self, rule: str, terms: Terms, model: str, asked: Asked) -> None:
        if terms.models is not None or terms.deny_models:
            sent = model.lower()
            alias, *plain = asked.stands_for(model)
            if terms.models is not None and not _any(terms.models, sent, alias):
                listed = ", ".join(terms.models) or "none"
                message = f"the model {model!r} is not one of those allowed ({listed})"
                raise PolicyRefused(message, rule=rule, kind="models")
            if terms.deny_models and _any(terms.deny_models, sent, alias, *plain):
                raise PolicyRefused(f"the model {model!r} is denied", rule=rule, kind="models")
        if terms.priced and not asked.priced(model):
            message = f"the price of the model {model!r} is not known, and only priced models are allowed"
            raise PolicyRefused(message, rule=rule, kind="price")

    def _check_provider(self, rule: str, terms: Terms, asked: Asked) -> None:
        host = _host(asked.where)
        names = [name.lower() for name in (asked.provider, host) if name]
        said = asked.provider or host or "one that is not known"
        if terms.providers is not None and not _any(terms.providers, *names):
            listed = ", ".join(terms.providers) or "none"
            message = f"its provider ({said}) is not one of those allowed ({listed})"
            raise PolicyRefused(message, rule=rule, kind="providers")
        if terms.deny_providers and (not names or _any(terms.deny_providers, *names)):
            raise PolicyRefused(f"its provider ({said}) is denied", rule=rule, kind="providers")

    def _check_region(self, rule: str, regions: Sequence[str], asked: Asked) -> None:
        found = self.region(asked.where, asked.provider)
        if found is None or not _any(regions, found, found.partition("-")[0]):
            where = f"in region {found!r}" if found else "in a region that is not known"
            message = f"it would be answered {where}; allowed are {', '.join(regions) or 'none'}"
            raise PolicyRefused(message, rule=rule, kind="regions")

    def region(self, where: str, provider: str | None) -> str | None:
        """Where a server is, as far as that is known: by `places`, else by what its host says."""
        host = _host(where)
        for name in (host, (provider or "").lower()):
            if name:
                for pattern, region in self._places.items():
                    if fnmatchcase(name, pattern):
                        return region
        return region_of_host(host) if host else None


def _screen_of(name: str, terms: Terms) -> Screen | None:
    from .screening import Screen  # loads what finds

    found = Screen(name, terms.pii, terms.sentinel)
    return found if found else None


def _asks_json(body: Mapping[str, Any]) -> bool:
    """Whether the answer is to be JSON all through."""
    text = body.get("text")
    shape = body.get("response_format") or (text.get("format") if isinstance(text, Mapping) else None)
    return isinstance(shape, Mapping) and str(shape.get("type", "")).startswith("json")


def _check_output(rule: str, most: int, asked: Asked) -> None:
    if asked.output_limit is not None and asked.output_limit > most:
        message = f"it asks for up to {asked.output_limit:,} output tokens; allowed are {most:,}"
        raise PolicyRefused(message, rule=rule, kind="output")
    if asked.output_limit is None and asked.least_output > most:
        message = f"it needs {asked.least_output:,} output tokens at least; allowed are {most:,}"
        raise PolicyRefused(message, rule=rule, kind="output")
    if asked.output_limit is None and not asked.can_limit:
        message = (
            f"it sets no output limit, and one of at most {most:,} tokens is required; here it cannot be "
            "set for it. Set the model's max_tokens, or wrap the model itself"
        )
        raise PolicyRefused(message, rule=rule, kind="output")


def _any(patterns: Sequence[str], *names: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _host(where: str) -> str:
    return (urlsplit(where).hostname or "").lower() if where else ""
