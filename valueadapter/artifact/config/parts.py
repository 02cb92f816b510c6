"""What an adapter is made of: networks, vocabulary, prefix; a level below the whole configuration."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Literal

from valueadapter.artifact import file_names
from valueadapter.artifact.config.number import finite, hold
from valueadapter.errors import ConfigError
from valueadapter.vocabulary.spec import SHA256
from valueadapter.vocabulary.strict_json import OMIT

Connection = Literal["residual", "cascade", "cascade_with_text"]
Initialisation = Literal["zero_head", "pretrained", "random"]
PenaltyKind = Literal["none", "l1", "l2", "entropy"]

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"(?:[A-Za-z0-9_][\w.-]{0,95}/)?[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w./+-]{0,254}", re.ASCII)
_LONGEST_NAME = 4096
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check_name(key: str, name: str) -> None:
    """Refuses what is neither a Hub ID nor a path on one line: it is shown, and may be opened.

    Raises:
        ConfigError: empty, longer than a path can be, or with a character that breaks or turns a line.
    """
    bad = [one for one in name if unicodedata.category(one) in _CONTROLS or one in _TURNING]
    if bad or not name.strip() or len(name) > _LONGEST_NAME:
        why = f"it holds U+{ord(bad[0]):04X}" if bad else f"it has {len(name):,} characters"
        raise ConfigError(f"'{key}' must be a Hub ID (user/name) or a path, on one line; got {name[:80]!a} ({why})")


def check_revision(key: str, revision: str) -> None:
    """Refuses what is no commit, branch or tag.

    Raises:
        ConfigError: other characters than such names have.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ConfigError(f"'{key}' must be a commit, branch or tag; got {revision[:80]!a}")


@dataclass(frozen=True)
class Weights:
    """What each summand counts for at scale 1: `base · base logits + Σ networks[i] · network logits + end · [end]`.

    A product of experts with one weight for each (Hinton 2002; fitted as in "Weighted Product of Experts", EMNLP
    Findings 2025).
    """

    base: float
    """Of the base's logits; 1 leaves them as they are."""
    networks: tuple[float, ...]
    """Of each network's logits, in the order of `networks`."""
    end: float = 0.0
    """Added to the logits of the tokens that end a text of the base, in nats."""

    def __post_init__(self) -> None:
        if not isinstance(self.networks, tuple):
            raise ConfigError(f"the weights of networks must be a tuple of numbers; got {self.networks!r}")
        networks = tuple(finite(f"weight {index} of networks", one) for index, one in enumerate(self.networks))
        object.__setattr__(self, "base", finite("weight of the base", self.base))
        object.__setattr__(self, "networks", networks)
        object.__setattr__(self, "end", finite("weight of the end of text", self.end))

    def __str__(self) -> str:
        networks = " ".join(f"{weight:+.3g}" for weight in self.networks)
        end = f", end of text {self.end:+.3g}" if self.end else ""
        return f"base {self.base:.3g}, networks {networks}{end}"


@dataclass(frozen=True)
class NetworkSpec:
    """One value network of the weighted sum: either inside the artifact or a pinned Hub repository."""

    coefficient: float = 1.0
    """Weight of this network's logits on bases that nobody measured; finite and not 0."""
    path: str | None = field(default=None, metadata=OMIT)
    """Directory inside the artifact, relative, with forward slashes."""
    sha256: dict[str, str] = field(default_factory=dict, metadata=OMIT)
    """File name -> SHA-256 (64 hex) of every weight file under `path`; filled when the adapter is saved."""
    repo: str | None = field(default=None, metadata=OMIT)
    """Hub ID of a repository that holds the network, in place of `path`."""
    revision: str | None = field(default=None, metadata=OMIT)
    """Commit hash (40 hex) of `repo`; required with `repo`, so that the adapter cannot change under its users."""
    reads_prefix: bool = field(default=False, metadata=OMIT)
    """Whether this network reads the prefix as the base does: one that is subtracted in the training base's place."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.repo is None):
            raise ConfigError(f"a network needs either 'path' or 'repo'; got path={self.path!r} and repo={self.repo!r}")
        hold(self, finite, "coefficient")
        if self.coefficient == 0:
            raise ConfigError("'coefficient' must be finite and not 0; got 0, with which the network would say nothing")
        if self.path is not None:
            self._check_local(self.path)
        elif not HUB_ID.fullmatch(str(self.repo)) or ".." in str(self.repo):
            raise ConfigError(f"'repo' must be a Hub ID (user/name); got {str(self.repo)[:120]!r}")
        elif self.revision is None or not COMMIT.fullmatch(self.revision):
            raise ConfigError(
                f"'revision' of network '{self.repo}' must be a 40-hex commit hash; got {self.revision!r}"
            )
        elif self.sha256:
            raise ConfigError(f"network '{self.repo}' is pinned by its revision; remove its 'sha256'")

    def _check_local(self, path: str) -> None:
        parts = path.split("/")
        if not path or "\\" in path or path.startswith("/") or any(p in ("", ".", "..") for p in parts):
            raise ConfigError(f"'path' must be a plain relative path inside the adapter; got {path!r}")
        taken = (file_names.ALIGNMENTS, file_names.CHAT_TEMPLATES, *file_names.CODE_FOLDERS)
        if parts[0] in taken or file_names.is_training_state(parts[0]):
            raise ConfigError(f"'path' may not lie in '{parts[0]}', whose files are not verified; got {path!r}")
        if any(file_names.is_hidden(part) for part in parts):
            raise ConfigError(f"'path' may not be hidden, because what is hidden is not published; got {path!r}")
        check_name("path", path)
        if self.revision is not None:
            raise ConfigError(f"network '{path}' lies in the artifact; remove its 'revision' ({self.revision!r})")
        for name, digest in self.sha256.items():
            is_weights = name.endswith(file_names.SAFETENSORS) and not file_names.is_hidden(name) and name.isprintable()
            if "/" in name or "\\" in name or not is_weights or not SHA256.fullmatch(digest):
                raise ConfigError(
                    f"'sha256' of network '{path}' must map names of safetensors files to 64 hex digits; got "
                    f"{name!r}: {digest!r}"
                )
