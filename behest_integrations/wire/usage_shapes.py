"""How providers write down the usage of a call: data, with its sources, and its one reader.

Used for bodies and streams that pass over HTTP and for what frameworks keep of them alike. A
usage that cannot be read whole, or that says nothing, is no usage.

genai-prices' `extract_usage` is not asked: it wants the provider and the kind of API to be known
(behind an alias or a gateway they are not), takes no numerals, and takes zeros for usage. The
tests hold every dialect that both know against it.

Over 500 lines, most of them data with its sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from ..rules.usage import Usage

Cache = Literal["within", "beside", "by total"]


@dataclass(frozen=True)
class Shape:
    """One way to write down a usage.

    Each of the names is a path with dots. `*name` is every key that is `name`, or ends with
    `_name`; `list[key=value].name` are those items of a list. Of several names the first counts
    that is there, but for those under `more_…`, which are all added.

    Attributes:
        source: where the provider says so.
        marks: keys by one of which the dialect is known.
        input, output, total: the counts; a usage has one of the first two at least.
        more_input, more_output: what is billed and is not in `input` or `output`.
        cached: read from a cache.
        written: written to one; `written_1h`, `written_5m` are the parts by their lifetime, which
            come in the place of it or as well.
        cache: whether `input` has the cached and written tokens in it (``within``), they come on
            top (``beside``), or which of both it is shows in the total (``by total``).
    """

    name: str
    source: str
    marks: tuple[str, ...]
    input: tuple[str, ...]
    output: tuple[str, ...]
    total: tuple[str, ...] = ("total_tokens",)
    more_input: tuple[str, ...] = ()
    more_output: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    written_5m: tuple[str, ...] = ()
    written_1h: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    input_audio: tuple[str, ...] = ()
    output_audio: tuple[str, ...] = ()
    cache: Cache = "within"


_OPENAI_CACHED = (
    "prompt_tokens_details.cached_tokens",
    "input_tokens_details.cached_tokens",
    "input_token_details.cached_tokens",
    "prompt_cache_hit_tokens",
    "cached_tokens",
    "num_cached_tokens",
    "cached_prompt_text_tokens",
    "input_tokens_details.cache_read_input_tokens",
)
_OPENAI_WRITTEN = (
    "prompt_tokens_details.cache_write_tokens",
    "prompt_tokens_details.cache_creation_tokens",
    "input_tokens_details.cache_write_tokens",
    "input_tokens_details.cache_creation_tokens",
)
_OPENAI_REASONING = (
    "completion_tokens_details.reasoning_tokens",
    "output_tokens_details.reasoning_tokens",
    "output_tokens_details.thinking_tokens",
    "reasoning_tokens",
)
_OPENAI_INPUT_AUDIO = (
    "prompt_tokens_details.audio_tokens",
    "input_tokens_details.audio_tokens",
    "input_token_details.audio_tokens",
)
_OPENAI_OUTPUT_AUDIO = (
    "completion_tokens_details.audio_tokens",
    "output_tokens_details.audio_tokens",
    "output_token_details.audio_tokens",
)
_5M, _1H = "cache_creation.ephemeral_5m_input_tokens", "cache_creation.ephemeral_1h_input_tokens"

SHAPES: tuple[Shape, ...] = (
    # By tokens billed, where they differ from those counted. All counts are floats.
    Shape(
        "Cohere",
        "https://docs.cohere.com/reference/chat",
        marks=("billed_units",),
        input=("billed_units.input_tokens",),
        output=("billed_units.output_tokens",),
        total=(),
    ),
    Shape(
        "Cohere, tokens",
        "https://docs.cohere.com/reference/chat",
        marks=("tokens",),
        input=("tokens.input_tokens",),
        output=("tokens.output_tokens",),
        total=(),
        cached=("cached_tokens",),
    ),
    # Thoughts and the results of tools are counted beside the rest.
    Shape(
        "Gemini",
        "https://ai.google.dev/api/generate-content#UsageMetadata",
        marks=("promptTokenCount", "candidatesTokenCount", "totalTokenCount"),
        input=("promptTokenCount",),
        output=("candidatesTokenCount",),
        total=("totalTokenCount",),
        more_input=("toolUsePromptTokenCount",),
        more_output=("thoughtsTokenCount",),
        cached=("cachedContentTokenCount",),
        reasoning=("thoughtsTokenCount",),
        input_audio=("promptTokensDetails[modality=AUDIO].tokenCount",),
        output_audio=("candidatesTokensDetails[modality=AUDIO].tokenCount",),
    ),
    Shape(
        "Gemini, Python SDK",
        "https://googleapis.github.io/python-genai/genai.html#genai.types.GenerateContentResponseUsageMetadata",
        marks=("prompt_token_count", "candidates_token_count", "total_token_count"),
        input=("prompt_token_count",),
        output=("candidates_token_count",),
        total=("total_token_count",),
        more_input=("tool_use_prompt_token_count",),
        more_output=("thoughts_token_count",),
        cached=("cached_content_token_count",),
        reasoning=("thoughts_token_count",),
        input_audio=("prompt_tokens_details[modality=AUDIO].token_count",),
        output_audio=("candidates_tokens_details[modality=AUDIO].token_count",),
    ),
    # `inputTokens` leaves the cache out, `totalTokens` has it in.
    Shape(
        "Bedrock Converse",
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html",
        marks=("inputTokens", "outputTokens"),
        input=("inputTokens",),
        output=("outputTokens",),
        total=("totalTokens",),
        cached=("cacheReadInputTokens",),
        written=("cacheWriteInputTokens",),
        written_5m=("cacheDetails[ttl=5m].inputTokens",),
        written_1h=("cacheDetails[ttl=1h].inputTokens",),
        cache="beside",
    ),
    Shape(
        "Bedrock InvokeModel",
        "https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html",
        marks=("inputTokenCount",),
        input=("inputTokenCount",),
        output=("outputTokenCount",),
        total=(),
        cached=("cacheReadInputTokenCount",),
        written=("cacheWriteInputTokenCount",),
        cache="beside",
    ),
    Shape(
        "Ollama",
        "https://github.com/ollama/ollama/blob/main/docs/api.md",
        marks=("prompt_eval_count", "eval_count"),
        input=("prompt_eval_count",),
        output=("eval_count",),
        total=(),
    ),
    Shape(
        "llama.cpp",
        "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",
        marks=("tokens_evaluated",),
        input=("tokens_evaluated",),
        output=("tokens_predicted",),
        total=(),
    ),
    Shape(
        "watsonx.ai",
        "https://cloud.ibm.com/apidocs/watsonx-ai#text-generation",
        marks=("generated_token_count",),
        input=("input_token_count",),
        output=("generated_token_count",),
        total=(),
    ),
    # LangChain's own, into which its classes translate. A service tier comes before a name.
    Shape(
        "LangChain",
        "https://reference.langchain.com/python/langchain_core/messages/#langchain_core.messages.ai.UsageMetadata",
        marks=("input_token_details", "output_token_details"),
        input=("input_tokens",),
        output=("output_tokens",),
        cached=("input_token_details.*cache_read", "input_token_details.cached_tokens"),
        written=("input_token_details.*cache_creation",),
        written_5m=("input_token_details.*ephemeral_5m_input_tokens",),
        written_1h=("input_token_details.*ephemeral_1h_input_tokens",),
        reasoning=("output_token_details.*reasoning",),
        input_audio=("input_token_details.*audio", "input_token_details.audio_tokens"),
        output_audio=("output_token_details.*audio", "output_token_details.audio_tokens"),
        cache="by total",
    ),
    # Anthropic's names beside OpenAI's: LlamaIndex's BedrockConverse leaves the cache out of
    # `prompt_tokens`, Databricks and LiteLLM have it in.
    Shape(
        "OpenAI with Anthropic's cache",
        "https://docs.databricks.com/aws/en/machine-learning/foundation-model-apis/api-reference",
        marks=("prompt_tokens & cache_read_input_tokens", "prompt_tokens & cache_creation_input_tokens"),
        input=("prompt_tokens",),
        output=("completion_tokens",),
        cached=("cache_read_input_tokens",),
        written=("cache_creation_input_tokens",),
        written_5m=(_5M,),
        written_1h=(_1H,),
        reasoning=_OPENAI_REASONING,
        input_audio=_OPENAI_INPUT_AUDIO,
        output_audio=_OPENAI_OUTPUT_AUDIO,
        cache="by total",
    ),
    Shape(
        "Anthropic",
        "https://docs.claude.com/en/docs/build-with-claude/prompt-caching",
        marks=("cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation", "server_tool_use"),
        input=("input_tokens",),
        output=("output_tokens",),
        total=(),
        cached=("cache_read_input_tokens",),
        written=("cache_creation_input_tokens",),
        written_5m=(_5M,),
        written_1h=(_1H,),
        reasoning=("output_tokens_details.thinking_tokens",),
        cache="beside",
    ),
    Shape(
        "Perplexity",
        "https://docs.perplexity.ai/getting-started/pricing",
        marks=("citation_tokens", "num_search_queries"),
        input=("prompt_tokens",),
        output=("completion_tokens",),
        more_output=("reasoning_tokens", "citation_tokens"),
        reasoning=("reasoning_tokens",),
    ),
    # OpenAI's three, and those that are like them: Mistral, DeepSeek (`prompt_cache_hit_tokens`,
    # https://api-docs.deepseek.com/api/create-chat-completion), Moonshot (`cached_tokens`,
    # https://platform.moonshot.ai/docs/api/chat), Groq, xAI, OpenRouter, vLLM, llama.cpp, Azure.
    # Gemini's and Vertex's compatible endpoints and xAI leave thoughts out of `completion_tokens`
    # and have them in `total_tokens`: https://ai.google.dev/gemini-api/docs/openai,
    # https://docs.x.ai/docs/guides/reasoning.
    Shape(
        "OpenAI chat, completions, embeddings",
        "https://platform.openai.com/docs/api-reference/chat/object",
        marks=("prompt_tokens", "completion_tokens"),
        input=("prompt_tokens",),
        output=("completion_tokens", "output_tokens"),
        cached=_OPENAI_CACHED,
        written=_OPENAI_WRITTEN,
        reasoning=_OPENAI_REASONING,
        input_audio=_OPENAI_INPUT_AUDIO,
        output_audio=_OPENAI_OUTPUT_AUDIO,
    ),
    Shape(
        "OpenAI responses",
        "https://platform.openai.com/docs/api-reference/responses/object",
        marks=("input_tokens", "output_tokens"),
        input=("input_tokens",),
        output=("output_tokens",),
        cached=_OPENAI_CACHED,
        written=_OPENAI_WRITTEN,
        reasoning=_OPENAI_REASONING,
        input_audio=_OPENAI_INPUT_AUDIO,
        output_audio=_OPENAI_OUTPUT_AUDIO,
    ),
)
"""Every shape; the first whose marks are there is the one."""

PLACES: tuple[tuple[str, str], ...] = (
    ("usage", "https://platform.openai.com/docs/api-reference/chat/object"),
    ("usageMetadata", "https://ai.google.dev/api/generate-content#UsageMetadata"),
    ("usage_metadata", "https://googleapis.github.io/python-genai/"),
    ("response.usage", "https://platform.openai.com/docs/api-reference/responses-streaming"),
    ("response.usageMetadata", "https://ai.google.dev/api/live"),
    ("x_groq.usage", "https://console.groq.com/docs/api-reference#chat-create"),
    ("choices.0.usage", "https://platform.moonshot.ai/docs/api/chat"),
    ("message.usage", "https://docs.claude.com/en/docs/build-with-claude/streaming"),
    ("delta.usage", "https://docs.cohere.com/v2/docs/streaming"),
    ("metadata.usage", "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html"),
    ("result.usage", "https://developers.cloudflare.com/workers-ai/"),
    ("meta", "https://docs.cohere.com/v1/reference/chat"),
    ("token_usage", "https://docs.langchain.com/oss/python/integrations/chat"),
    ("amazon-bedrock-invocationMetrics", "https://docs.aws.amazon.com/bedrock/latest/userguide/inference-invoke.html"),
)  # fmt: skip
"""Where in a reply, or in an event of a stream, a usage may be, with the source of each; in this order.
Some lie in the reply itself: see `_OWN`."""

_OWN = frozenset({"prompt_eval_count", "eval_count", "tokens_evaluated", "generated_token_count"})
"""Counts that lie in the reply itself, and not in an object of their own.
https://github.com/ollama/ollama/blob/main/docs/api.md"""

_PATHS = tuple(tuple(path.split(".")) for path, _ in PLACES)
_MOST = 2**53
"""More tokens than that are no count: beyond it, not every JSON parser is exact."""

# ── the reader ─────────────────────────────────────────────────────────────────────────


def read_usage(said: object) -> Usage | None:
    """A usage object in whichever dialect; None if there is none that can be read.

    None as well where it is all zeros, where a count is negative or not a whole number, and where
    the input is not told (told as 0, it is passed on as that: see `believable`).
    """
    if type(said) is dict:
        usage = _plain_openai(said) if "prompt_tokens" in said else _plain_langchain(said)
        if usage is not None:
            return usage
    if not isinstance(said, Mapping):
        said = as_mapping(said)
        if not said:
            return None
    for reader in _readers(frozenset(key for key, value in said.items() if value is not None)):
        try:
            usage = reader.read(said)
        except (_NoCount, RecursionError):
            return None
        if usage is not None:
            return usage
    return None


def find_usage(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The usage object that a reply, or an event of a stream, has in it, wherever that is."""
    plain = body.get("usage")
    if type(plain) is dict:
        return plain
    for path in _PATHS:
        if path[0] in body:
            value: Any = body
            for key in path:
                value = _step(value, key)
            found = as_mapping(value)
            if found:
                return found
    return body if not _OWN.isdisjoint(body) else None


def as_mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, or the pydantic model that an SDK has made of one; empty for anything else."""
    if isinstance(value, Mapping):
        return value
    dump = getattr(value, "model_dump", None)
    if not callable(dump):
        return {}
    found: Mapping[str, Any] = dump()
    return found if isinstance(found, Mapping) else {}


def _plain_openai(said: dict[str, Any]) -> Usage | None:
    """The usage of nearly every reply, without the table; None if it is any other."""
    prompt, output = said.get("prompt_tokens"), said.get("completion_tokens", 0)
    if type(prompt) is not int or type(output) is not int or prompt <= 0 or output < 0:
        return None
    if said.get("total_tokens") != prompt + output or not said.keys() <= _PLAIN:
        return None
    inputs, outputs = said.get("prompt_tokens_details"), said.get("completion_tokens_details")
    if not inputs and not outputs:
        return Usage(prompt, output)
    inputs, outputs = inputs or _NONE, outputs or _NONE
    if type(inputs) is not dict or type(outputs) is not dict or not inputs.keys() <= _PLAIN_INPUTS:
        return None
    cached, heard = inputs.get("cached_tokens") or 0, inputs.get("audio_tokens") or 0
    thought, spoken = outputs.get("reasoning_tokens") or 0, outputs.get("audio_tokens") or 0
    for count in (cached, heard, thought, spoken):
        if type(count) is not int or count < 0:
            return None
    return Usage(
        prompt,
        output,
        cached if cached <= prompt else prompt,
        0,
        thought if thought <= output else output,
        heard if heard <= prompt else prompt,
        spoken if spoken <= output else output,
    )


def _plain_langchain(said: dict[str, Any]) -> Usage | None:
    """LangChain's usage of nearly every message, without the table; None if it is any other."""
    prompt, output = said.get("input_tokens"), said.get("output_tokens")
    if type(prompt) is not int or type(output) is not int or prompt <= 0 or output < 0:
        return None
    if said.get("total_tokens") != prompt + output or not said.keys() <= _PLAIN_LANGCHAIN:
        return None
    inputs, outputs = said.get("input_token_details") or _NONE, said.get("output_token_details") or _NONE
    if not inputs and not outputs:
        return Usage(prompt, output)
    if type(inputs) is not dict or type(outputs) is not dict or any(inputs.values()):
        return None
    thought = outputs.get("reasoning") or 0
    if type(thought) is not int or not 0 <= thought <= output or outputs.get("audio"):
        return None
    return Usage(prompt, output, reasoning_tokens=thought) if outputs.keys() <= _TOLD_OF_OUTPUT else None


_NONE: dict[str, Any] = {}
_PLAIN_LANGCHAIN = frozenset(
    {"input_tokens", "output_tokens", "total_tokens", "input_token_details", "output_token_details"}
)
_TOLD_OF_OUTPUT = frozenset({"audio", "reasoning"})
_PLAIN = frozenset(
    {
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "completion_tokens_details",
    }
)
_PLAIN_INPUTS = frozenset({"cached_tokens", "audio_tokens", "text_tokens", "image_tokens"})


class _NoCount(ValueError):
    """What should be a number of tokens is none."""


class _Reader:
    """A dialect, made ready to be read."""

    def __init__(self, shape: Shape) -> None:
        self.cache = shape.cache
        self.marks = [frozenset(mark.split(" & ")) for mark in shape.marks]
        self._input = _getters(shape.input)
        self._output = _getters(shape.output)
        self._total = _getters(shape.total)
        self._more_input = _getters(shape.more_input)
        self._more_output = _getters(shape.more_output)
        self._cached = _getters(shape.cached)
        self._written = _getters(shape.written)
        self._written_5m = _getters(shape.written_5m)
        self._written_1h = _getters(shape.written_1h)
        self._reasoning = _getters(shape.reasoning)
        self._input_audio = _getters(shape.input_audio)
        self._output_audio = _getters(shape.output_audio)

    def read(self, said: Mapping[str, Any]) -> Usage | None:
        """The usage; None if its input is not told.

        Raises:
            _NoCount: something in it is no count.
        """
        prompt = _first(said, self._input)
        if prompt is None:
            return None
        output, total = _first(said, self._output) or 0, _first(said, self._total) or 0
        prompt += _all(said, self._more_input)
        output += _all(said, self._more_output)
        cached = _first(said, self._cached) or 0
        hour = _first(said, self._written_1h) or 0
        # The parts by lifetime may come in the place of the whole, or be less than it.
        written = max(_first(said, self._written) or 0, hour + (_first(said, self._written_5m) or 0))
        thought = _first(said, self._reasoning) or 0
        if self._is_beside(prompt, cached + written, total - prompt - output, thought):
            prompt += cached + written
        # What is billed and in the total alone, as some endpoints' thoughts are, is output.
        output = max(output, total - prompt)
        if not prompt and not output:
            return None
        cached = min(cached, prompt)
        written = min(written, prompt - cached)
        return Usage(
            input_tokens=prompt,
            output_tokens=output,
            cached_input_tokens=cached,
            cache_write_tokens=written,
            reasoning_tokens=min(thought, output),
            input_audio_tokens=min(_first(said, self._input_audio) or 0, prompt),
            output_audio_tokens=min(_first(said, self._output_audio) or 0, output),
            cache_write_1h_tokens=min(hour, written),
        )

    def _is_beside(self, prompt: int, cache: int, more: int, thought: int) -> bool:
        """Whether what was read from and written to a cache is not in `prompt`.

        Args:
            more: what the total has more than input and output: the cache then, or thoughts.
            thought: as many as `more` (and by chance as many as the cache), they are what it is:
                the cache is within by the provider's word.
        """
        if not cache or self.cache == "beside":
            return cache > 0
        if self.cache == "by total":
            return more >= cache or cache > prompt
        return more == cache and more != thought


@lru_cache(maxsize=256)
def _readers(told: frozenset[str]) -> tuple[_Reader, ...]:
    """The dialects that a usage may be in which has these keys."""
    return tuple(reader for reader in _READERS if any(mark <= told for mark in reader.marks))


def _count(value: object) -> int | None:
    """A number of tokens; None if none is told.

    Raises:
        _NoCount: it is something else: negative, broken, no number.
    """
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        if not text or len(text) > 20:
            raise _NoCount
        try:
            value = int(text) if text.isdecimal() else float(text)
        except ValueError:
            raise _NoCount from None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        raise _NoCount
    return value


_Getter = Callable[[Mapping[str, Any]], "int | None"]


def _getters(paths: tuple[str, ...]) -> tuple[_Getter, ...]:
    return tuple(map(_getter, paths))


def _first(said: Mapping[str, Any], getters: tuple[_Getter, ...]) -> int | None:
    for get in getters:
        count = get(said)
        if count is not None:
            return count
    return None


def _all(said: Mapping[str, Any], getters: tuple[_Getter, ...]) -> int:
    return sum(get(said) or 0 for get in getters)


def _getter(path: str) -> _Getter:
    """What reads the count of a path: of all that it leads to together, None if to nothing."""
    *steps, last = path.split(".")
    if not steps:
        return lambda said: _count(said.get(last))
    (step,) = steps
    key, _, chosen = step.partition("[")
    field, _, value = chosen.removesuffix("]").partition("=")
    if field:
        return lambda said: _total(
            item.get(last) for item in _items(said.get(key)) if _text(item.get(field)) == value
        )
    if last.startswith("*"):
        name = last[1:]
        ending = f"_{name}"
        return lambda said: _total(
            count for key, count in as_mapping(said.get(step)).items() if key == name or key.endswith(ending)
        )
    return lambda said: _count(as_mapping(inner).get(last)) if (inner := said.get(step)) else None


def _total(values: Iterable[object]) -> int | None:
    counts = [count for value in values if (count := _count(value)) is not None]
    return sum(counts) if counts else None


def _items(value: object) -> Iterator[Mapping[str, Any]]:
    return map(as_mapping, value) if isinstance(value, (list, tuple)) else iter(())


def _text(value: object) -> str:
    """SDKs have enumerations where the JSON has strings."""
    return str(getattr(value, "value", value))


def _step(value: Any, key: str) -> Any:
    if key.isdecimal():
        return value[int(key)] if isinstance(value, list) and len(value) > int(key) else None
    return as_mapping(value).get(key)


_READERS = tuple(map(_Reader, SHAPES))
