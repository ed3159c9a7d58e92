"""Keys and tokens in prompts, by the rules that detect-secrets keeps: what the services themselves publish.

Of its rules those by shape are used. Those by entropy, by names of variables and of public addresses find too
much in prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..rules.errors import need

_TOO_WIDE = frozenset(
    {"KeywordDetector", "IPPublicDetector", "HexHighEntropyString", "Base64HighEntropyString"}
)
_KEY_BLOCK = re.compile(r"-----BEGIN (?P<kind>[A-Z0-9 ]*)-----.*?(?:-----END (?P=kind)-----|\Z)", re.DOTALL)


class Secrets:
    """Finds secrets.

    Raises:
        MissingExtra: detect-secrets is not installed.
    """

    def __init__(self) -> None:
        with need("detect-secrets", "pii"):
            from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
            from detect_secrets.plugins.base import RegexBasedDetector
        classes: Any = get_mapping_from_secret_type_to_class()
        used: list[Any] = [
            cls
            for cls in classes.values()
            if issubclass(cls, RegexBasedDetector) and cls.__name__ not in _TOO_WIDE
        ]
        # Their own search tells what is in their patterns' groups, which may be a prefix alone.
        self._patterns: list[re.Pattern[str]] = [p for cls in used for p in cls().denylist]
        self.kinds: list[str] = sorted({cls.secret_type for cls in used})

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where secrets are, from and to."""
        if "-----BEGIN" in text:
            for block in _KEY_BLOCK.finditer(text):
                if "PRIVATE KEY" in block["kind"]:
                    yield block.span()
        for pattern in self._patterns:
            for found in pattern.finditer(text):
                if found.end() > found.start():
                    yield found.span()
