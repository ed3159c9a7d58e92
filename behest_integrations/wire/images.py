"""The most tokens that one image can be billed as, by model: what each maker publishes of it.

Images are scaled down before they are counted, so that a bound needs no size. A model that is not here has
no published one: images for it are refused under a budget in dollars.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache

from ..rules.names import read_name

# Patterns of the model's plain name, the first that matches counts: low detail (None: as any), any detail.
_IMAGES: tuple[tuple[str, int | None, int], ...] = (
    # https://platform.openai.com/docs/guides/images-vision: tile models scale to at most 8 tiles
    # (base + 8 * tile), patch models to at most 1,536 patches times a factor. Where both rules have been
    # published for a model, the larger. From GPT-5.1 to 5.5 at most 10,000 patches, of an original; the
    # factor is billed at 1.2, and published as 1.62. Of what came later no such limit is known here.
    ("gpt-4o-mini*", 2833, 2833 + 8 * 5667),
    ("gpt-4o*", 85, 85 + 8 * 170),
    ("chatgpt-4o*", 85, 85 + 8 * 170),
    ("gpt-4.5*", 85, 85 + 8 * 170),
    ("gpt-4.1-mini*", None, 2489),
    ("gpt-4.1-nano*", None, 3779),
    ("gpt-4.1*", None, 1536),
    ("gpt-5-mini*", None, 2489),
    ("gpt-5-nano*", None, 3779),
    ("gpt-5.[12345]", None, 16200),
    ("gpt-5.[12345]-*", None, 16200),
    ("gpt-5", 70, 70 + 8 * 140),
    ("gpt-5-*", 70, 70 + 8 * 140),
    ("o4-mini*", None, 2642),
    ("o1*", 75, 75 + 8 * 150),
    ("o3*", 75, 75 + 8 * 150),
    # https://platform.claude.com/docs/en/build-with-claude/vision#evaluate-image-size: a token for each 28 by
    # 28 pixels, of at most 1,568; up to 1,661 have been billed. From Opus 4.7 on, of at most 4,784.
    ("claude-3*", None, 2048),
    ("claude-4-*", None, 2048),
    ("claude-sonnet-4", None, 2048),
    ("claude-sonnet-4-*", None, 2048),
    ("claude-haiku-4-5*", None, 2048),
    ("claude-opus-4", None, 2048),
    ("claude-opus-4-[01256]*", None, 2048),
    ("claude-opus-4-[789]*", None, 6144),
    ("claude-opus-5*", None, 6144),
    ("claude-sonnet-5*", None, 6144),
    ("claude-haiku-5*", None, 6144),
    ("claude-fable-5*", None, 6144),
    ("claude-mythos-5*", None, 6144),
    # https://ai.google.dev/gemini-api/docs/media-resolution#token-counts: at most 2,240 (ultra high) where
    # the resolution is a number of tokens; until Gemini 2.5 it is cut in tiles, of about 2,048 in all, here
    # twice that.
    ("gemini-3*", None, 2240),
    ("gemini-4*", None, 2240),
    ("gemini-2.5-*", None, 4096),
)
_MARGIN = 32


def image_bound(model: str, detail: object = None) -> int | None:
    """Most tokens one image can be billed as by `model`; None without a published rule."""
    rule = _rule(model)
    if rule is None:
        return None
    low, top = rule
    return (low if detail == "low" and low is not None else top) + _MARGIN


@lru_cache(maxsize=1024)
def _rule(model: str) -> tuple[int | None, int] | None:
    name = read_name(model).plain
    return next(((low, top) for pattern, low, top in _IMAGES if fnmatchcase(name, pattern)), None)


def unpublished(model: str) -> str:
    """Why an image is refused where there is no bound."""
    return f"No published rule says how many tokens model {model!r} bills for an image"
