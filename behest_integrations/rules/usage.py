"""Tokens by class: what one provider call consumed, and whether what was told can be true.

Counts are totals with breakdowns: `input_tokens` includes the cached ones, `output_tokens`
includes the reasoning ones. How providers write them down is in `wire/usage_shapes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Usage:
    """What one provider call consumed, in tokens.

    `cache_write_1h_tokens` are those of `cache_write_tokens` that the provider keeps for an hour.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cache_write_1h_tokens: int = 0

    def __post_init__(self) -> None:
        for value in self.__dict__.values():
            if type(value) is not int or value < 0:
                raise ValueError(f"usage is in whole numbers of tokens, not {value!r}")

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


# No answer has more text than this for each of its tokens. English has 4 to 5 characters a
# token, code some 4; single tokens of much more exist (128 blanks in o200k_base), answers of
# nothing else do not.
_TEXT_PER_TOKEN = 32
_TEXT_BESIDES = 256
# Servers send an event for each token or for several; simulators one for each character.
_EVENTS_PER_TOKEN = 16
_EVENTS_BESIDES = 16


def believable(usage: Usage, *, text: int = 0, events: int = 0) -> bool:
    """Whether `usage` can be what the answer consumed. If not, it is no usage.

    Servers send zeros where counting is off, where tools were used, or before the count is known.

    Args:
        text: characters of the answer that were seen, tool calls included.
        events: events of a stream that were seen, and whose text was not.
    """
    output = usage.output_tokens
    if not output:
        return usage.input_tokens > 0 and not text and not events
    return (
        text <= _TEXT_PER_TOKEN * output + _TEXT_BESIDES
        and events <= _EVENTS_PER_TOKEN * output + _EVENTS_BESIDES
    )


class RunningUsage:
    """The usage of one stream out of the usages that its chunks told, taken in as they come.

    Some servers tell a running total on each chunk, some what each chunk added, some the input
    at the beginning and the output at the end, most only one usage at the end. Running totals
    repeat the input, and their output never falls; anything else is added up.
    """

    def __init__(self) -> None:
        self.told = 0
        """How many chunks told a usage."""
        self._inputs = 0
        self._falls = False
        self._first = self._last = self._sum = Usage()

    def add(self, usage: Usage | None) -> None:
        """Take in what a chunk told; nothing if it told nothing, or zeros."""
        if usage is None or not usage.total_tokens:
            return
        self.told += 1
        if self.told == 1:
            self._first = self._last = self._sum = usage
            self._inputs = usage.input_tokens > 0
            return
        self._inputs += usage.input_tokens > 0
        last = self._last
        self._falls |= usage.output_tokens < last.output_tokens or usage.input_tokens < last.input_tokens
        self._last = usage
        self._sum = self._sum + usage

    @property
    def usage(self) -> Usage | None:
        """What the stream has consumed so far, from above; None if nothing was told."""
        if not self.told:
            return None
        last, total = self._last, self._sum
        if self.told == 1 or (self._inputs == self.told and not self._falls and not self._stands_still):
            return last
        if self._inputs == self.told:
            # The same prompt on each chunk, and outputs that fall: each chunk's own.
            return Usage(
                last.input_tokens,
                total.output_tokens,
                cached_input_tokens=last.cached_input_tokens,
                cache_write_tokens=last.cache_write_tokens,
                reasoning_tokens=total.reasoning_tokens,
                input_audio_tokens=last.input_audio_tokens,
                output_audio_tokens=total.output_audio_tokens,
                cache_write_1h_tokens=last.cache_write_1h_tokens,
            )
        return total

    @property
    def _stands_still(self) -> bool:
        """Many chunks that all tell the same few tokens: one each, not the same one."""
        return self._first.output_tokens == self._last.output_tokens < self.told > 2
