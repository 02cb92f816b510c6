"""Which tokens logits speak of, by fingerprints; knows no tokenizer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from valueadapter.errors import ConfigError

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class VocabularySpec:
    """Which tokens the value logits speak of."""

    logits_width: int
    """Columns of the value logits, at least 1; may exceed the number of tokens (padding)."""
    byte_fingerprint: str
    """SHA-256 over (id, bytes, special) of every token with an id below `logits_width`; 64 hex."""
    behaviour_fingerprint: str
    """SHA-256 over the ids of fixed probe strings (normaliser, pre-tokenizer, control tokens); 64 hex."""

    def __post_init__(self) -> None:
        if self.logits_width < 1:
            raise ConfigError(f"'logits_width' must be at least 1; got {self.logits_width}")
        for name in ("byte_fingerprint", "behaviour_fingerprint"):
            if not SHA256.fullmatch(getattr(self, name)):
                raise ConfigError(f"'{name}' must be 64 hex digits; got {getattr(self, name)!r}")
