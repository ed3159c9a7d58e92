"""What providers bill, by the rules that they publish: small servers, each of one dialect.

Written from the providers' own pages (the links), apart from the package's tables, so that the two
can be held against each other. A server answers as dearly as its rules let it: what it draws from
`Draw` is anything that a model, a template or a router may do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from bpe_openai import get_encoding

MILLION = 10**6


@dataclass(frozen=True)
class Rates:
    """USD per million tokens."""

    input: Decimal
    output: Decimal
    cached: Decimal

    @classmethod
    def of(cls, input: str, output: str, cached: str | None = None) -> Rates:
        return cls(Decimal(input), Decimal(output), Decimal(cached or input))


@dataclass(frozen=True)
class Draw:
    """What one answer happens to be.

    Attributes:
        per: bytes that a token of this server has.
        request, message: tokens of the template around a request and each message.
        length: tokens that the model would write for each choice, were nothing to stop it.
        thought: tokens that it would think before.
        cached: percent of the prompt that comes out of a cache.
        pick: which of several limits or models a server goes by, where it is free to.
        stream: whether usage is told on each chunk, as a running total.
    """

    per: int = 1
    request: int = 0
    message: int = 0
    length: int = 100_000
    thought: int = 0
    cached: int = 0
    pick: int = 0
    running: bool = False

    def by(self, template: tuple[int, int, int]) -> Draw:
        """The same answer of a server with this tokenizer and template."""
        per, request, message = template
        return replace(self, per=per, request=request, message=message)


@dataclass(frozen=True)
class Bill:
    """What the provider charges: nano-dollars, and the tokens that it says."""

    nano: int
    usage: dict[str, Any]
    tokens: int
    model: str
    tier: str | None = None


class Refused(Exception):
    """HTTP 400: what these servers answer to a request that they do not take. Not billed."""


def at(body: Mapping[str, Any], path: str) -> Any:
    """The value of a path with dots."""
    value: Any = body
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def put(path: str, value: Any) -> dict[str, Any]:
    """A body with a value at a path."""
    for step in reversed(path.split(".")):
        value = {step: value}
    return value  # type: ignore[no-any-return]


def texts(value: Any) -> Iterator[str]:
    """All text that a template may write of a value, names of its fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield str(name)
            yield from texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from texts(part)
    elif value is not None:
        yield json.dumps(value)


Usage = Callable[[int, int, int, int], dict[str, Any]]


def openai_usage(prompt: int, output: int, cached: int, thought: int) -> dict[str, Any]:
    """https://platform.openai.com/docs/api-reference/chat/object: thoughts are part of the output."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": thought, "audio_tokens": 0},
    }


def plain_usage(prompt: int, output: int, cached: int, thought: int) -> dict[str, Any]:
    """vLLM, llama.cpp, TGI and others: nothing is told of caches or thoughts."""
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def beside_usage(prompt: int, output: int, cached: int, thought: int) -> dict[str, Any]:
    """xAI: `completion_tokens` without the thoughts, which are in the total.
    https://docs.x.ai/docs/guides/reasoning"""
    told = openai_usage(prompt, output, cached, thought)
    return {**told, "completion_tokens": output - thought}


def total_usage(prompt: int, output: int, cached: int, thought: int) -> dict[str, Any]:
    """Gemini's compatible endpoint: thoughts are in the total alone.
    https://discuss.ai.google.dev/t/openai-compatibility-thoughts-token-count"""
    return {"prompt_tokens": prompt, "completion_tokens": output - thought, "total_tokens": prompt + output}


def deepseek_usage(prompt: int, output: int, cached: int, thought: int) -> dict[str, Any]:
    """https://api-docs.deepseek.com/api/create-chat-completion"""
    return {
        **plain_usage(prompt, output, cached, thought),
        "prompt_cache_hit_tokens": cached,
        "prompt_cache_miss_tokens": prompt - cached,
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def moonshot_usage(prompt: int, output: int, cached: int, thought: int) -> dict[str, Any]:
    """https://platform.moonshot.ai/docs/api/chat: `cached_tokens` at the top."""
    return {**plain_usage(prompt, output, cached, thought), "cached_tokens": cached}


SELF_HOSTED = Rates.of("0.7", "3.1", "0.2")


@dataclass(frozen=True)
class Rules:
    """One server's rules.

    Attributes:
        dialect: its name in the package's table.
        provider: how the package is told of it.
        model: the one that is asked for; `rates` what it costs.
        limits: the fields that it takes an output limit in; it goes by any of those that are sent.
        unlimited: those of them in which -1 says "no limit".
        answers: the fields that ask for several; the most counts.
        floors: fields for the least length of an answer.
        within, on_top: budgets for thoughts, which count within the limit, or beside it.
        echoes: fields that have the prompt come back, billed as output.
        echo_last: likewise, of so many tokens of it.
        predictions: fields with a text whose rejected tokens are billed as output.
        rendered: fields that the template writes into the prompt.
        multipliers: by field and value, of the price.
        tiers: by value of `service_tier`, of the price.
        others: fields that name models which may answer, and what those cost.
        usage: how it tells its usage.
        unasked: whether a stream tells it without being asked.
        encoding: OpenAI's, where that is how it counts.
    """

    dialect: str
    provider: str
    model: str = "house"
    rates: Rates = SELF_HOSTED
    limits: Sequence[str] = ("max_tokens", "max_completion_tokens")
    unlimited: Sequence[str] = ()
    answers: Sequence[str] = ("n",)
    floors: Sequence[str] = ()
    within: Sequence[str] = ()
    on_top: Sequence[str] = ()
    echoes: Sequence[str] = ()
    echo_last: Sequence[str] = ()
    predictions: Sequence[str] = ()
    rendered: Sequence[str] = ("tools", "functions", "response_format")
    multipliers: Mapping[tuple[str, str], Decimal] = field(default_factory=dict)
    tiers: Mapping[str, Decimal] = field(default_factory=dict)
    others: Sequence[str] = ()
    other_rates: Mapping[str, Rates] = field(default_factory=dict)
    usage: Usage = plain_usage
    unasked: bool = False
    encoding: str | None = None
    own: bool = True
    """Whether its price is the user's own (`Meter(prices=…)`), and not a price list's."""

    def prompt(self, body: Mapping[str, Any], draw: Draw) -> int:
        messages = body.get("messages") or ()
        said = [
            t for message in messages for name, part in message.items() if name != "role" for t in texts(part)
        ]
        if self.encoding is not None:
            # Tools become TypeScript: https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken
            said += [t for path in self.rendered for t in texts(at(body, path))]
            encode = get_encoding(self.encoding).encode_ordinary
            return 3 + 3 * len(messages) + sum(len(encode(t)) for t in said)
        for path in self.rendered:
            value = at(body, path)
            if isinstance(value, str):
                said.append(value)
            elif value is not None:
                # Llama 3.1's template writes tools with an indent of four.
                said.append(json.dumps(value, indent=4 if path in ("tools", "functions") else None))
        around = draw.request + draw.message * len(messages)
        return max(1, around + sum(-(-len(t.encode()) // draw.per) for t in said))

    def limit(self, body: Mapping[str, Any], draw: Draw) -> int | None:
        sent = [(path, value) for path in self.limits if (value := at(body, path)) is not None]
        if not sent:
            return None
        path, value = sent[draw.pick % len(sent)]
        if value < 1:
            if path not in self.unlimited:
                raise Refused(path)
            return None
        return int(value)

    def answer(self, body: Mapping[str, Any], draw: Draw) -> tuple[int, int]:
        """(output tokens, thoughts among them) of all choices together."""
        choices = max([1, *(int(at(body, path) or 1) for path in self.answers)])
        limit = self.limit(body, draw)
        least = max([0, *(int(at(body, path) or 0) for path in self.floors)])
        if limit is not None and least > limit:
            raise Refused("the least length is over the limit")
        within = [int(value) for path in self.within if (value := at(body, path)) is not None]
        if within and limit is not None and max(within) >= limit:
            raise Refused("the budget for thoughts is not below the limit")
        thought = min([draw.thought, *within]) if within else draw.thought
        thought = thought if limit is None else min(thought, limit)
        length = max(least, draw.length)
        output = thought + (length if limit is None else min(length, limit - thought))
        on_top = [int(value) for path in self.on_top if (value := at(body, path)) is not None and value > 0]
        if on_top:
            beside = min(draw.thought, max(on_top))
            output, thought = output + beside, thought + beside
        more = 0
        if any(at(body, path) for path in self.echoes):
            more += self.prompt(body, draw)
        more += max([0, *(min(int(at(body, path) or 0), self.prompt(body, draw)) for path in self.echo_last)])
        output = (output + more) * choices
        for path in self.predictions:  # at most all of it is rejected
            value = at(body, path)
            content = value.get("content") if isinstance(value, Mapping) else value
            output += sum(len(t.encode()) for t in texts(content))
        return output, thought * choices

    def bill(self, body: Mapping[str, Any], draw: Draw) -> Bill:
        """What a request costs.

        Raises:
            Refused: the server does not take it.
        """
        output, thought = self.answer(body, draw)
        prompt = self.prompt(body, draw)
        told = self.usage(prompt, output, prompt * draw.cached // 100, thought)
        cached = (
            prompt * draw.cached // 100
            if self.usage is not plain_usage and self.usage is not total_usage
            else 0
        )
        model, rates = self.model, self.rates
        candidates = [self.model, *(name for path in self.others for name in at(body, path) or ())]
        chosen = candidates[draw.pick % len(candidates)]
        if chosen != self.model:
            model, rates = chosen, self.other_rates[chosen]
        times = Decimal(1)
        for (path, value), factor in self.multipliers.items():
            if at(body, path) == value:
                times *= factor
        tier = body.get("service_tier")
        if isinstance(tier, str):
            times *= self.tiers.get(tier, Decimal(1))
        usd = (
            times
            * ((prompt - cached) * rates.input + cached * rates.cached + output * rates.output)
            / MILLION
        )
        nano = -int(-(usd * 10**9) // 1)  # rounded up, as a fraction of a nano-dollar is somebody's
        return Bill(nano, told, prompt + output, model, tier if isinstance(tier, str) else None)


def reply(body: Mapping[str, Any], bill: Bill) -> dict[str, Any]:
    """The answer to a request, in one piece; its text is short."""
    message = {"role": "assistant", "content": "ok"}
    said = {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1,
        "model": bill.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": bill.usage,
    }
    return said if bill.tier is None else {**said, "service_tier": bill.tier}


def streamed(body: Mapping[str, Any], bill: Bill, running: bool, unasked: bool = False) -> bytes:
    """The same in events; usage at its end, as it is asked for, or on each chunk."""
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": bill.model}
    if bill.tier is not None:
        head["service_tier"] = bill.tier
    choices = max(1, int(body.get("n") or 1))
    events: list[dict[str, Any]] = []
    for index in range(choices):
        delta = {"role": "assistant", "content": "ok"}
        events.append({**head, "choices": [{"index": index, "delta": delta, "finish_reason": None}]})
        events.append({**head, "choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})
    if running:
        events = [{**event, "usage": bill.usage} for event in events]
    elif unasked or at(body, "stream_options.include_usage"):
        events.append({**head, "choices": [], "usage": bill.usage})
    return (
        b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    )


_OPENAI_TIERS = {
    # https://platform.openai.com/docs/pricing?latest-pricing=priority: gpt-4o at $4.25 and $17
    "priority": Decimal("1.7"),
}
RULES: tuple[Rules, ...] = (
    Rules(
        "OpenAI",
        "openai",
        "gpt-4o",
        Rates.of("2.5", "10", "1.25"),
        predictions=("prediction",),
        usage=openai_usage,
        encoding="o200k_base",
        tiers=_OPENAI_TIERS,
        own=False,
    ),
    Rules("Azure OpenAI", "azure", predictions=("prediction",), usage=openai_usage),
    Rules(
        # https://docs.vllm.ai/en/stable/serving/openai_compatible_server.html#extra-parameters
        "vLLM",
        "vllm",
        answers=("n", "best_of"),
        floors=("min_tokens",),
        within=("thinking_token_budget",),
        rendered=("tools", "functions", "response_format", "documents", "chat_template_kwargs"),
    ),
    Rules(
        # https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md: `n_predict` comes first
        "llama.cpp",
        "llama.cpp",
        limits=("n_predict", "max_tokens", "max_completion_tokens"),
        unlimited=("n_predict",),
        answers=("n", "n_cmpl"),
        within=("reasoning_budget_tokens", "thinking_budget_tokens"),
        echoes=("echo",),
        rendered=("tools", "functions", "response_format", "json_schema", "chat_template_kwargs"),
    ),
    Rules(
        # https://docs.ollama.com/openai: `max_tokens`; the native API's options come through some proxies
        "Ollama",
        "ollama",
        limits=("max_tokens", "options.num_predict"),
        unlimited=("options.num_predict",),
        answers=(),
        rendered=("tools", "functions", "response_format", "system", "template"),
    ),
    Rules(
        # https://huggingface.co/docs/text-generation-inference/reference/api_reference
        "Text Generation Inference",
        "tgi",
        limits=("max_tokens", "max_new_tokens", "parameters.max_new_tokens"),
        answers=("n", "best_of", "parameters.best_of"),
        echoes=("return_full_text", "parameters.return_full_text"),
        rendered=("tools", "functions", "response_format", "tool_prompt"),
    ),
    Rules(
        "SGLang",
        "sglang",
        limits=("max_tokens", "max_completion_tokens", "max_new_tokens"),
        answers=("n", "best_of"),
        floors=("min_tokens", "min_new_tokens"),
        rendered=("tools", "functions", "response_format", "chat_template_kwargs", "task"),
    ),
    Rules("LM Studio", "lmstudio"),
    Rules(
        # https://openrouter.ai/docs/features/model-routing#the-models-parameter
        "OpenRouter",
        "openrouter",
        others=("models",),
        other_rates={"dear": Rates.of("150", "600"), "cheap": Rates.of("0.1", "0.2")},
        within=("reasoning.max_tokens",),
        predictions=("prediction",),
        rendered=("tools", "functions", "response_format", "deferred_tools"),
        usage=openai_usage,
    ),
    Rules(
        "Mistral",
        "mistral",
        limits=("max_tokens",),
        floors=("min_tokens",),
        predictions=("prediction",),
        unasked=True,  # wire/changes.py has the source
    ),
    Rules(
        "Groq", "groq", rendered=("tools", "functions", "response_format", "documents"), usage=openai_usage
    ),
    Rules("DeepSeek", "deepseek", limits=("max_tokens",), answers=(), usage=deepseek_usage),
    Rules(
        # https://docs.together.ai/reference/chat-completions-1
        "Together",
        "together",
        limits=("max_tokens",),
        echoes=("echo",),
        rendered=("tools", "functions", "response_format", "chat_template_kwargs"),
    ),
    Rules(
        # https://docs.fireworks.ai/api-reference/post-chatcompletions
        "Fireworks",
        "fireworks",
        echoes=("echo",),
        echo_last=("echo_last",),
        predictions=("prediction", "speculation"),
        within=("thinking.budget_tokens",),
        usage=openai_usage,
    ),
    Rules("xAI", "x-ai", usage=beside_usage),
    Rules(
        # https://ai.google.dev/gemini-api/docs/thinking: budgets are beside the limit on Google's page
        "Gemini",
        "google",
        limits=(
            "max_tokens",
            "max_completion_tokens",
            "generation_config.max_output_tokens",
            "generationConfig.maxOutputTokens",
        ),
        answers=("n", "generation_config.candidate_count", "generationConfig.candidateCount"),
        on_top=(
            "extra_body.google.thinking_config.thinking_budget",
            "google.thinking_config.thinking_budget",
            "generation_config.thinking_config.thinking_budget",
            "generationConfig.thinkingConfig.thinkingBudget",
        ),
        usage=total_usage,
    ),
    Rules(
        # https://platform.claude.com/docs/en/build-with-claude/fast-mode and …/data-residency
        "Anthropic",
        "anthropic",
        "claude-opus-4-6",
        Rates.of("5", "25", "0.5"),
        within=("thinking.budget_tokens",),
        rendered=("tools", "functions", "response_format", "system", "output_config"),
        multipliers={("speed", "fast"): Decimal(6), ("inference_geo", "us"): Decimal("1.1")},
        own=False,
    ),
    Rules("Perplexity", "perplexity", limits=("max_tokens",), answers=("n", "best_of")),
    Rules(
        "Cohere",
        "cohere",
        limits=("max_tokens",),
        answers=(),
        within=("thinking.token_budget",),
        rendered=("tools", "functions", "response_format", "documents"),
    ),
    Rules(
        # https://inference-docs.cerebras.ai/api-reference/chat-completions
        "Cerebras",
        "cerebras",
        answers=("n", "best_of"),
        floors=("min_tokens", "min_completion_tokens"),
        predictions=("prediction",),
    ),
    Rules("Moonshot", "moonshotai", usage=moonshot_usage),
    Rules(
        # https://www.alibabacloud.com/help/en/model-studio/deep-thinking: `thinking_budget` is beside it
        "Qwen (Model Studio)",
        "dashscope",
        on_top=("thinking_budget",),
        rendered=("tools", "functions", "response_format", "translation_options"),
        usage=openai_usage,
    ),
    Rules(
        "NVIDIA NIM",
        "nvidia",
        floors=("min_tokens",),
        within=("nvext.max_thinking_tokens",),
        rendered=("tools", "functions", "response_format", "chat_template_kwargs"),
    ),
    Rules(
        "TensorRT-LLM",
        "tensorrt_llm",
        answers=("n", "best_of", "beam_width", "num_beams"),
        floors=("min_tokens",),
        rendered=(
            "tools",
            "functions",
            "response_format",
            "documents",
            "chat_template",
            "chat_template_kwargs",
        ),
    ),
    Rules(
        # https://docs.litellm.ai/docs/proxy/reliability
        "LiteLLM proxy",
        "litellm",
        answers=("n", "best_of"),
        others=("fallbacks", "context_window_fallbacks"),
        other_rates={"dear": Rates.of("150", "600"), "cheap": Rates.of("0.1", "0.2")},
        within=("thinking.budget_tokens",),
        predictions=("prediction",),
        usage=openai_usage,
    ),
    Rules("Behest", "behest"),
)
