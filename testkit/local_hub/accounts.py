"""Users and their tokens; knows nothing of repositories or HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class User:
    """Who a token belongs to, and what it may do."""

    name: str
    organizations: tuple[str, ...] = ()
    role: Literal["read", "write"] = "write"
    """What the token allows."""

    def owns(self, namespace: str) -> bool:
        """Whether repositories under `namespace` are the user's or the user's organisations'."""
        return namespace == self.name or namespace in self.organizations


DEFAULT_USERS: Mapping[str, User] = {
    "hf_alice": User("alice", ("acme",)),
    "hf_bob": User("bob"),
    "hf_alice_read": User("alice", ("acme",), role="read"),
}
"""The users by token that a hub has unless told otherwise."""
