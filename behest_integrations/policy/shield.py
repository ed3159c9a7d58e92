"""Finds what is somebody's own in a text: Microsoft Presidio's recognisers, and secrets by kept rules.

Without a model of a language, Presidio's recognisers by pattern and checksum are on, and nothing that needs
to understand a sentence (names of people and places); what is asked for and cannot be found is an error.
Nothing is fetched at run time: neither models nor lists of domains.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..rules.errors import ConfigError, need
from .secret_rules import Secrets

if TYPE_CHECKING:
    from .settings import Pii

SECRET = "SECRET"
"""Keys and tokens of services."""
_BY_MODEL = ("PERSON", "LOCATION", "NRP", "ORGANIZATION")
_lock = threading.Lock()


class Found(NamedTuple):
    """Where something is in a text."""

    start: int
    end: int
    entity: str


class Shield:
    """Finds entities in texts.

    Args:
        entities: which are looked for.

    Raises:
        MissingExtra: what finds them is not installed.
        ConfigError: one cannot be found by what is on.
    """

    def __init__(self, settings: Pii, entities: Iterable[str]) -> None:
        wanted = set(entities)
        self._secrets = Secrets() if SECRET in wanted else None
        self._analyzer: Any = None
        self._languages = settings.languages
        self._entities = sorted(wanted - {SECRET})
        self._threshold = settings.threshold
        self._allowed = frozenset(settings.allowed)
        self.on: dict[str, list[str]] = {SECRET: self._secrets.kinds} if self._secrets is not None else {}
        """What finds each entity, by name."""
        if self._entities:
            self._analyzer = _analyzer(settings)
            self._check()

    def _check(self) -> None:
        for entity in self._entities:
            names = {
                r.name
                for language in self._languages
                for r in self._analyzer.registry.get_recognizers(language=language, all_fields=True)
                if entity in r.supported_entities
            }
            if not names:
                known = sorted(
                    {e for la in self._languages for e in self._analyzer.get_supported_entities(la)}
                )
                why = f"nothing that is on finds {entity!r} in {', '.join(self._languages)}"
                if entity in _BY_MODEL:
                    why += '; it takes a spaCy model that is installed: models = {en = "en_core_web_sm"}'
                raise ConfigError(f"[policy.pii] {why}. What can be found: {', '.join([*known, SECRET])}")
            self.on[entity] = sorted(names)

    def find(self, text: str) -> list[Found]:
        """What is in a text; nothing overlaps, and the first begins first."""
        found: list[Found] = []
        if self._secrets is not None:
            found += (Found(start, end, SECRET) for start, end in self._secrets.find(text))
        if self._analyzer is not None:
            for language in self._languages:
                for each in self._analyzer.analyze(
                    text, language, entities=self._entities, score_threshold=self._threshold
                ):
                    found.append(Found(each.start, each.end, each.entity_type))
        if self._allowed:
            found = [f for f in found if text[f.start : f.end] not in self._allowed]
        return list(_apart(found))


def _apart(found: Sequence[Found]) -> Iterator[Found]:
    """Those that overlap as one, named as the longest of them."""
    whole: Found | None = None
    longest = 0
    for each in sorted(found, key=lambda f: (f.start, -f.end, f.entity)):
        if whole is None or each.start >= whole.end:
            if whole is not None:
                yield whole
            whole, longest = each, each.end - each.start
        else:
            name = each.entity if each.end - each.start > longest else whole.entity
            longest = max(longest, each.end - each.start)
            whole = Found(whole.start, max(whole.end, each.end), name)
    if whole is not None:
        yield whole


# ── Presidio ───────────────────────────────────────────────────────────────────────────


def _analyzer(settings: Pii) -> Any:
    with need("Presidio", "pii"):
        from presidio_analyzer import AnalyzerEngine, Pattern, PatternRecognizer, RecognizerRegistry
    # It says each recogniser of another language that it does not load.
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    languages = list(settings.languages)
    engine = _nlp_engine(languages, settings.models)
    registry = RecognizerRegistry(supported_languages=languages)
    with _lock:
        registry.load_predefined_recognizers(languages=languages, nlp_engine=engine)
    if not settings.models:
        for recognizer in [r for r in registry.recognizers if set(r.supported_entities) & set(_BY_MODEL)]:
            registry.recognizers.remove(recognizer)
    _keep_offline(registry, languages)
    for language in languages:
        for entity, given in settings.patterns.items():
            pattern = Pattern(entity.lower(), given.regex, given.score)
            registry.add_recognizer(
                PatternRecognizer(
                    entity,
                    patterns=[pattern],
                    context=list(given.context) or None,
                    supported_language=language,
                )
            )
        for entity, words in settings.words.items():
            registry.add_recognizer(
                PatternRecognizer(entity, deny_list=list(words), supported_language=language)
            )
    for recognizer in settings.recognizers:
        registry.add_recognizer(recognizer)
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=languages)


def _keep_offline(registry: Any, languages: Sequence[str]) -> None:
    """Presidio asks tldextract whether a domain's end is one, which would fetch a list of them from the web;
    the list that it comes with does."""
    import tldextract
    from presidio_analyzer.predefined_recognizers import EmailRecognizer, UrlRecognizer

    extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    def is_domain(self: Any, pattern_text: str) -> bool:
        return bool(extract(pattern_text).fqdn)

    for kind in (EmailRecognizer, UrlRecognizer):
        offline = type(kind.__name__, (kind,), {"validate_result": is_domain})
        for recognizer in [r for r in registry.recognizers if isinstance(r, kind)]:
            registry.recognizers.remove(recognizer)
        for language in languages:
            registry.add_recognizer(offline(supported_language=language))


def _nlp_engine(languages: Sequence[str], models: Mapping[str, str]) -> Any:
    import spacy
    from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine, SpacyNlpEngine

    if models:
        for language in languages:
            name = models.get(language)
            if name is None:
                raise ConfigError(f"[policy.pii] models names none for the language {language!r}")
            if not spacy.util.is_package(name) and "/" not in name:
                raise ConfigError(
                    f"[policy.pii] the spaCy model {name!r} is not installed: install it with pip"
                )
        listed = [{"lang_code": language, "model_name": models[language]} for language in languages]
        engine = SpacyNlpEngine(models=listed)
        engine.load()
        return engine

    class Words(NlpEngine):  # type: ignore[misc]
        """Words alone, for recognisers that look at what stands around; no model."""

        engine_name = "words"

        def __init__(self) -> None:
            self._blank: dict[str, Any] = {}

        def load(self) -> None:
            for language in languages:
                try:
                    self._blank[language] = spacy.blank(language)
                except ImportError as error:
                    raise ConfigError(
                        f"[policy.pii] the language {language!r} is not known to spaCy"
                    ) from error

        def is_loaded(self) -> bool:
            return bool(self._blank)

        def process_text(self, text: str, language: str) -> Any:
            words = self._blank[language].make_doc(text)
            lemmas = [word.text.lower() for word in words]
            return NlpArtifacts([], words, [word.idx for word in words], lemmas, self, language)

        def process_batch(self, texts: Any, language: str, *args: Any, **kwargs: Any) -> Any:
            for text in texts:
                yield text, self.process_text(text, language)

        def is_stopword(self, word: str, language: str) -> bool:
            return bool(self._blank[language].vocab[word].is_stop)

        def is_punct(self, word: str, language: str) -> bool:
            return bool(self._blank[language].vocab[word].is_punct)

        def get_supported_entities(self) -> list[str]:
            return []

        def get_supported_languages(self) -> list[str]:
            return list(languages)

    words = Words()
    words.load()
    return words
