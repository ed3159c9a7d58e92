"""What each field of a request does to the bill, looked up; the data is in `dialects`.

A request to a server whose dialect is known is read by its rows, and by everyone's where it has
none for a field. To any other server, a field means the worst that it means anywhere: several
limits bound the answer by the largest, and fees, multiples and more answers all count. A field
that no dialect has is a feature `field:NAME` of the request, which budgets refuse by that name.

The tables are put together when the first request is read; after that an ordinary request costs
one look at each of its names.

Over 500 lines: how the table is read, and how it is told to people, change together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from typing import Any, NamedTuple

from ..rules.errors import ConfigError
from .dialects import (
    DEAREST_TIER,
    DIALECTS,
    EFFECTS,
    FREE_PLUGINS,
    PLUGINS,
    SAFETY_PROMPT,
    SPEEDS,
    TIERS,
    VALUES,
    Dialect,
)

Ratio = tuple[int, int]
"""A numerator and a denominator."""

ONE: Ratio = (1, 1)
NO_FIELDS: frozenset[str] = frozenset()
OPERATIONS = (
    "chat", "completions", "responses", "embeddings", "messages", "generate_content", "embed_content",
    "chat_v2", "embed_v2", "converse",
)  # fmt: skip

READ_BY_BOUNDS: Mapping[str, frozenset[str]] = {
    "chat": frozenset(
        (
            "model",
            "messages",
            "tools",
            "functions",
            "response_format",
            "max_tokens",
            "max_completion_tokens",
            "n",
        )
    ),
    "completions": frozenset(("model", "prompt", "max_tokens", "n")),
    "responses": frozenset(("model", "input", "instructions", "tools", "text", "max_output_tokens")),
    "embeddings": frozenset(("model", "input")),
    "messages": frozenset(
        ("model", "messages", "system", "tools", "max_tokens", "context_management", "thread")
    ),
    "generate_content": frozenset(("model", "stream", "contents", "systemInstruction", "tools")),
    "embed_content": frozenset(("model", "stream", "content")),
    "chat_v2": frozenset(("model", "messages", "tools", "documents", "response_format", "max_tokens")),
    "embed_v2": frozenset(("model", "texts", "inputs")),
    "converse": frozenset(
        ("model", "stream", "messages", "system", "toolConfig.tools", "inferenceConfig.maxTokens")
    ),
}
"""Fields that the bounds of these operations take from the request themselves."""

# A limit below 1 is a mistake in the usual fields, and "no limit" in the others
# (https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx, num_predict).
_STRICT_LIMITS = frozenset(
    ("max_tokens", "max_completion_tokens", "max_output_tokens", "generationConfig.maxOutputTokens")
)


class Row(NamedTuple):
    """One effect of a field: a key of `dialects.EFFECTS`, and its argument."""

    effect: str
    arg: str = ""


class Entry:
    """What is known of one field: its effects, and the fields within it."""

    __slots__ = ("inside", "rows")

    def __init__(self) -> None:
        self.rows: tuple[Row, ...] = ()
        self.inside: dict[str, Entry] = {}

    def add(self, row: Row) -> None:
        if row not in self.rows:
            self.rows = (*self.rows, row)

    @property
    def harmless(self) -> bool:
        return not self.inside and all(row.effect == "nothing" for row in self.rows)


class Table(NamedTuple):
    """What is known of an operation's fields.

    Attributes:
        plain: the fields that do nothing to the bill, and those that `bound_request` reads.
        entries: all, by name.
        usual: those of them that make no difference but by what `bound_request` reads of messages and limits.
        limits: the fields in which this dialect takes the output limit; empty: not known.
    """

    plain: frozenset[str]
    usual: frozenset[str]
    entries: Mapping[str, Entry]
    limits: frozenset[str]


class FieldEffects(NamedTuple):
    """What the fields of one request do to its bill, beyond what `bound_request` reads itself.

    Attributes:
        limits: output limits by the path of their field; None: it says that there is none.
        lowered: paths of what must not be above the limit that is sent (floors).
        below: paths of what must be below it (budgets for thoughts).
        least_output: tokens that the answer has at least.
        choices: answers that are asked for.
        echo: whether the prompt comes back.
        extra_output: output tokens on top.
        predictions: values whose tokens may be billed as output.
        counted: values that become part of the prompt.
        extra_input: input tokens on top.
        features: what has a fee, or is not known, by name, with the reason.
        multiplier: of the price.
        tier: the price list's name of the service tier that is asked for.
        tier_multiplier: of the price, where the price list has none for that tier.
        models: other models that may answer.
        stored: whether context is continued that the provider has stored.
        output_audio: whether a spoken answer is asked for.
    """

    limits: Mapping[str, int | None] = {}
    lowered: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    least_output: int = 0
    choices: int = 1
    echo: bool = False
    extra_output: int = 0
    predictions: tuple[Any, ...] = ()
    counted: tuple[Any, ...] = ()
    extra_input: int = 0
    features: Mapping[str, str] = {}
    multiplier: Ratio = ONE
    tier: str | None = None
    tier_multiplier: Ratio = ONE
    models: tuple[str, ...] = ()
    stored: bool = False
    output_audio: bool = False


NO_EFFECTS = FieldEffects()


# ── the tables ─────────────────────────────────────────────────────────────────────────


def rows_of(dialect: Dialect, operation: str) -> Iterable[tuple[str, Row]]:
    """The fields of a dialect's requests, with what each does: (path, row)."""
    text: str = getattr(dialect, operation)
    if operation in ("chat", "completions"):
        text = f"{dialect.both}\n{text}" if text or not dialect.providers else ""
    for line in text.splitlines():
        head, _, names = line.partition(":")
        effect, _, arg = head.strip().partition(" ")
        for name in names.split():
            yield name, Row(effect, arg)


@cache
def _by_provider() -> dict[str, Dialect]:
    return {provider: dialect for dialect in DIALECTS for provider in dialect.providers}


@cache
def _everyone(operation: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for dialect in DIALECTS:
        _add(entries, ((path, row) for path, row in rows_of(dialect, operation) if row.effect != "fee_here"))
    return entries


@cache
def _own(dialect: Dialect, operation: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    _add(entries, rows_of(dialect, operation))
    return entries


def _add(entries: dict[str, Entry], rows: Iterable[tuple[str, Row]]) -> None:
    for path, row in rows:
        level = entries
        *outer, name = path.split(".")
        for step in outer:
            level = level.setdefault(step, Entry()).inside
        level.setdefault(name, Entry()).add(row)


def _merged(first: Mapping[str, Entry], then: Mapping[str, Entry]) -> dict[str, Entry]:
    """`first`, and of `then` what it does not have, at every level."""
    merged = dict(then)
    for name, entry in first.items():
        other = then.get(name)
        if other is not None and entry.inside and other.inside:
            both = Entry()
            both.rows, both.inside = entry.rows, _merged(entry.inside, other.inside)
            entry = both
        merged[name] = entry
    return merged


_tables: dict[tuple[str, str | None], Table] = {}
_MANY = 1024


def table_of(operation: str, provider: str | None) -> Table:
    """What is known of the fields of `operation`, at a provider or (None) anywhere."""
    found = _tables.get((operation, provider))
    return found if found is not None else _compile(operation, provider)


def _compile(operation: str, provider: str | None) -> Table:
    dialect = _by_provider().get(provider) if provider is not None else None
    if dialect is None and provider is not None:
        table = table_of(operation, None)
    else:
        own = _own(dialect, operation) if dialect is not None else {}
        entries = _merged(own, _everyone(operation))
        harmless = {name for name, entry in entries.items() if entry.harmless}
        limits = frozenset(n for n, e in own.items() if any(row.effect == "limit" for row in e.rows))
        usual = {"model", "messages", "max_completion_tokens", "max_tokens", "n"} | harmless
        table = Table(READ_BY_BOUNDS[operation] | harmless, frozenset(usual), entries, limits)
    if len(_tables) < _MANY:
        _tables[operation, provider] = table
    return table


# ── reading a request ──────────────────────────────────────────────────────────────────


def read_fields(
    operation: str,
    body: Mapping[str, Any],
    provider: str | None = None,
    allowed: frozenset[str] = NO_FIELDS,
) -> FieldEffects:
    """What the fields of `body` do to its bill, beyond what `bound_request` reads itself.

    Args:
        operation: one of `OPERATIONS`.
        body: the request's JSON, with what an SDK's `extra_body` adds to it.
        provider: the price list's id of the provider, or another name in `dialects`; None: any.
        allowed: fields, by name or path, of which the user knows that they do nothing.

    Raises:
        ConfigError: a field that the bound depends on has an impossible value.
    """
    table = table_of(operation, provider)
    if table.plain.issuperset(body):
        return NO_EFFECTS
    reading = _Reading(operation, str(body.get("model") or ""), allowed, table.entries)
    plain = table.plain
    for name, value in body.items():
        if name not in plain and value is not None:
            reading.read(table.entries, str(name), str(name), value)
    return reading.effects()


def models_besides(operation: str, body: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The models that a request says may answer besides, by whichever field any server reads them from.

    Returns:
        None where a field names some in a way that is not known.

    Raises:
        ConfigError: a field that a bound depends on has an impossible value.
    """
    effects = read_fields(operation, body)
    return None if has_unread_models(operation, effects.features) else effects.models


def has_unread_models(operation: str, features: Iterable[str]) -> bool:
    """Whether among the features of a request is a field that names models in a way that is not known."""
    names = [
        feature.rpartition(":")[2].rpartition(".")[2] for feature in features if feature.startswith("field:")
    ]
    entries = table_of(operation, None).entries if names else {}
    return any(row.effect == "models" for name in names if name in entries for row in entries[name].rows)


class _Reading:
    """One request, as it is read."""

    def __init__(
        self, operation: str, model: str, allowed: frozenset[str], entries: Mapping[str, Entry]
    ) -> None:
        self.handled = READ_BY_BOUNDS[operation]
        self.model = model
        self.allowed = allowed
        self.root = entries
        self.limits: dict[str, int | None] = {}
        self.lowered: list[str] = []
        self.below: list[str] = []
        self.least = 0
        self.choices = 1
        self.echo = False
        self.extra_output = 0
        self.predictions: list[Any] = []
        self.counted: list[Any] = []
        self.extra_input = 0
        self.features: dict[str, str] = {}
        self.multiplier = ONE
        self.tier: str | None = None
        self.tier_multiplier = ONE
        self.models: list[str] = []
        self.stored = False
        self.audio = False

    def effects(self) -> FieldEffects:
        return FieldEffects(
            self.limits,
            tuple(self.lowered),
            tuple(self.below),
            self.least,
            self.choices,
            self.echo,
            self.extra_output,
            tuple(self.predictions),
            tuple(self.counted),
            self.extra_input,
            self.features,
            self.multiplier,
            self.tier,
            self.tier_multiplier,
            tuple(dict.fromkeys(self.models)),
            self.stored,
            self.audio,
        )

    def read(self, entries: Mapping[str, Entry], name: str, path: str, value: Any) -> None:
        """One field, `name` among `entries`."""
        entry = entries.get(name)
        if entry is None:
            self.refuse(path)
            return
        for row in entry.rows:
            _READERS[row.effect](self, row.arg, path, value)
        if not entry.inside:
            return
        if not isinstance(value, Mapping):
            if value and not entry.rows:
                self.refuse(path)
            return
        inside = {**self.root, **entry.inside} if name == "extra_body" else entry.inside
        # Where the whole has a meaning already, only what is known of its parts adds to it.
        whole = any(row.effect != "nothing" for row in entry.rows)
        for key, part in value.items():
            if part is not None and (not whole or key in inside):
                self.read(inside, str(key), f"{path}.{key}", part)

    def refuse(self, path: str, value: Any = None) -> None:
        """A field, or its value, is not known."""
        steps = path.split(".")
        if self.allowed and any(".".join(steps[:n]) in self.allowed for n in range(1, len(steps) + 1)):
            return
        what = f"the field {path!r}" + ("" if value is None else f" with the value {value!r:.80}")
        self.features.setdefault(
            f"field:{path}",
            f"The request has {what}, of which it is not known what it does to the bill (if it does nothing, "
            f"say so with Meter(allow_fields=[{path!r}]), or with allow_fields in behest.toml)",
        )

    # What each effect does: (self, argument, path, value). The names are in `_READERS`.

    def nothing(self, _: str, path: str, value: Any) -> None:
        """The bill is the same with it."""

    def fee(self, feature: str, path: str, value: Any) -> None:
        if value or isinstance(value, Mapping):  # options, be they all defaults, are asked for
            self.features.setdefault(
                feature,
                f"The field {path!r} asks for what is billed by use, beyond the tokens of this request",
            )

    def limit(self, _: str, path: str, value: Any) -> None:
        if path in self.handled:
            return
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and value < 1 and path not in _STRICT_LIMITS:
            self.limits[path] = None
        else:
            self.limits[path] = positive(path, value)

    def floor(self, _: str, path: str, value: Any) -> None:
        if value and path not in self.lowered:
            self.least = max(self.least, positive(path, value))
            self.lowered.append(path)

    def thoughts(self, _: str, path: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(path, value)
        elif value > 0 and path not in self.below:
            self.below.append(path)

    def thoughts_more(self, _: str, path: str, value: Any) -> None:
        self.thoughts("", path, value)
        # Below 1 it is the model's own choice, as without the field.
        if path in self.below:
            self.extra_output += value

    def answers(self, _: str, path: str, value: Any) -> None:
        if path not in self.handled:
            self.choices = max(self.choices, positive(path, value))

    def comes_back(self, _: str, path: str, value: Any) -> None:
        self.echo = self.echo or bool(value)

    def end_comes_back(self, _: str, path: str, value: Any) -> None:
        if value:
            self.extra_output += positive(path, value)

    def prediction(self, _: str, path: str, value: Any) -> None:
        if value:
            self.predictions.append(value)

    def prompt(self, _: str, path: str, value: Any) -> None:
        if path not in self.handled:
            self.counted.append(value)

    def safety(self, _: str, path: str, value: Any) -> None:
        if value:
            self.extra_input += SAFETY_PROMPT

    def plugins(self, _: str, path: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)):
            self.refuse(path)
            return
        for plugin in value:
            name = plugin.get("id") if isinstance(plugin, Mapping) else plugin
            off = isinstance(plugin, Mapping) and plugin.get("enabled") is False
            if str(name) not in FREE_PLUGINS and not off:
                self.fee(PLUGINS.get(str(name), f"plugin:{name}"), path, True)

    def search(self, _: str, path: str, value: Any) -> None:
        if not (isinstance(value, Mapping) and value.get("mode") == "off"):
            self.fee("web_search", path, value)

    def by_value(self, kind: str, path: str, value: Any) -> None:
        ratio = VALUES[kind].get(value) if isinstance(value, str) else None
        if ratio is None:
            self.refuse(path, value)
            return
        if kind == "speed" and ratio != ONE:
            ratio = next((r for pattern, r in SPEEDS if fnmatchcase(self.model.lower(), pattern)), ratio)
        self.multiplier = times(self.multiplier, ratio)

    def by_tier(self, _: str, path: str, value: Any) -> None:
        known = TIERS.get(value.lower()) if isinstance(value, str) else None
        if known is None:
            self.refuse(path, value)
            return
        self.tier = known[0]
        self.multiplier = times(self.multiplier, known[1])
        if known[0] == "priority":
            self.tier_multiplier = DEAREST_TIER

    def other_models(self, _: str, path: str, value: Any) -> None:
        named = model_names(value)
        if named is None:
            self.refuse(path, value)
        else:
            self.models += named

    def continues(self, _: str, path: str, value: Any) -> None:
        self.stored = self.stored or bool(value)

    def modalities(self, _: str, path: str, value: Any) -> None:
        for kind in value if isinstance(value, (list, tuple)) else [value]:
            kind = kind.lower() if isinstance(kind, str) else kind  # Gemini's are in capitals
            if kind == "audio":
                self.audio = True
            elif kind != "text":
                self.fee("image_output" if kind == "image" else f"modality:{kind}", path, True)

    def spoken(self, _: str, path: str, value: Any) -> None:
        self.audio = True


_READERS: Mapping[str, Callable[[_Reading, str, str, Any], None]] = {
    "nothing": _Reading.nothing,
    "request": _Reading.prompt,
    "prompt": _Reading.prompt,
    "safety": _Reading.safety,
    "limit": _Reading.limit,
    "floor": _Reading.floor,
    "thoughts": _Reading.thoughts,
    "thoughts_more": _Reading.thoughts_more,
    "answers": _Reading.answers,
    "echo": _Reading.comes_back,
    "echo_last": _Reading.end_comes_back,
    "prediction": _Reading.prediction,
    "fee": _Reading.fee,
    "fee_here": _Reading.fee,
    "plugins": _Reading.plugins,
    "search": _Reading.search,
    "values": _Reading.by_value,
    "tier": _Reading.by_tier,
    "models": _Reading.other_models,
    "stored": _Reading.continues,
    "modalities": _Reading.modalities,
    "audio": _Reading.spoken,
}


def positive(path: str, value: Any) -> int:
    """A field's whole number of at least 1.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{path} must be a whole number of at least 1, not {value!r}")
    return value


def times(one: Ratio, other: Ratio) -> Ratio:
    """The product of two ratios."""
    return (one[0] * other[0], one[1] * other[1])


def model_names(value: Any) -> list[str] | None:
    """The models that a field names, whatever its shape; None: it says more of them than a name."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        parts = [model_names(part) for part in value]
    elif isinstance(value, Mapping) and set(value) == {"model"}:
        return model_names(value["model"])
    elif isinstance(value, Mapping) and not set(value) & {"model", "messages"}:
        parts = [model_names(part) for part in value.values()]  # {"gpt-4o": ["gpt-4o-mini"]}
    else:
        return None
    return None if any(part is None for part in parts) else [name for part in parts for name in part or ()]


# ── frameworks ─────────────────────────────────────────────────────────────────────────

CONTAINERS = ("model_kwargs", "additional_kwargs", "generate_kwargs", "extra_body", "default_request_params")
"""Where frameworks' model classes keep what they put into the request as it is."""

NOT_SENT = frozenset((
    "_type", "allow_parallel_tool_calls", "api_base", "api_key", "api_version", "async_client",
    "azure_deployment", "azure_endpoint", "base_url", "cache", "callbacks", "client", "config",
    "default_headers", "default_query", "deployment_name", "disable_streaming", "engine",
    "extra_headers", "extra_query", "headers", "formatted", "http_client",
    "ls_structured_output_format", "max_retries", "model_name", "name", "rate_limiter",
    "request_timeout", "run_manager", "stream_usage", "streaming", "tags", "timeout",
    "tool_required", "verbose",
))  # fmt: skip
"""Keywords of frameworks' calls that are for the framework, and in no request."""


def framework_fields(settings: Mapping[str, Any], sent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a framework's model puts into a request beside the prompt, by the wire's names.

    Args:
        settings: the model object's own settings. Most of its names are for the framework, so
            only those count that the table knows, and all that are in one of its `CONTAINERS`.
        sent: keywords of the one call (`bind`, `invoke`, `chat`), all of which are put into the
            request but `NOT_SENT`.

    Returns:
        fields for a body given to `read_fields` or `bound_request`, the call's over the model's.
    """
    # A model is asked again and again with settings of the same names.
    fields = {name: settings[name] for name in _of_the_request(frozenset(settings))}
    for source in (settings, sent or _NOTHING):
        if source is sent:
            fields |= {n: v for n, v in source.items() if n not in NOT_SENT and n not in _CONTAINERS}
        for extra in put_into_request(source):
            fields |= extra
    return {name: value for name, value in fields.items() if value is not None and name not in _CONTAINERS}


_NOTHING: Mapping[str, Any] = {}
_CONTAINERS = frozenset(CONTAINERS)


@lru_cache(maxsize=1024)
def _of_the_request(names: frozenset[str]) -> tuple[str, ...]:
    """Those names of a model's settings that are fields of a request."""
    return tuple(sorted(names & table_of("chat", None).entries.keys() - NOT_SENT - _CONTAINERS))


def put_into_request(settings: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The fields that settings put into a request as they are, of each of their `CONTAINERS`."""
    if _CONTAINERS.isdisjoint(settings):
        return ()
    return [_flat(extra) for name in CONTAINERS if isinstance(extra := settings.get(name), Mapping)]


def _flat(extra: Mapping[str, Any]) -> dict[str, Any]:
    """An `extra_body` in other free keywords is merged into the request by the SDK."""
    flat = {name: value for name, value in extra.items() if name not in NOT_SENT}
    inner = flat.pop("extra_body", None)
    return {**flat, **inner} if isinstance(inner, Mapping) else flat


# ── for people ─────────────────────────────────────────────────────────────────────────

_INTRO = """\
# What each field of a request does to the bill

Made from `dialects.py` by `fields.table_as_markdown`; a test keeps it so. A field that is not
here is refused under a budget in dollars or tokens, by its name; `Meter(allow_fields=[...])` says
that it does nothing. To a server that is not known, a field means the worst of what is here.
"""


def table_as_markdown() -> str:
    """The whole table: by operation, every field, what it does, and which dialects have it."""
    parts = [_INTRO, "## Dialects\n", "| Dialect | Known by | Fields from |", "|---|---|---|"]
    for dialect in DIALECTS:
        known = ", ".join(f"`{p}`" for p in dialect.providers) or "(settings)"
        parts.append(f"| {dialect.name} | {known} | <{dialect.source}> |")
    for operation in OPERATIONS:
        having: dict[tuple[str, Row], list[str]] = {}
        for dialect in DIALECTS:
            for path, row in rows_of(dialect, operation):
                names = having.setdefault((path, row), [])
                if dialect.name not in names:
                    names.append(dialect.name)
        parts += [f"\n## {operation}\n", "| Field | What it does to the bill | Dialects |", "|---|---|---|"]
        parts += [
            f"| `{path}` | {_say(row)} | {', '.join(names)} |"
            for (path, row), names in sorted(having.items())
        ]
    return "\n".join(parts) + "\n"


def _allowed_by(feature: str) -> str:
    return f'refused, unless allowed by `allow={{"{feature}": "$…"}}`'


def _say(row: Row) -> str:
    said = EFFECTS[row.effect.removesuffix("_here")]
    if row.effect in ("fee", "fee_here"):
        return f"{said}: {_allowed_by(row.arg)}"
    if row.effect == "values":
        by_value = [
            f"`{v}`: {'nothing' if r == ONE else f'{r[0] / r[1]:g} times the price'}"
            for v, r in VALUES[row.arg].items()
        ]
        return "; ".join(by_value) + "; another: refused"
    return said
