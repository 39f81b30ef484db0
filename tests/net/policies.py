"""Address policies of the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    allow_private_addresses: bool
    user_agent: str = "image-to-3d/test"


STRICT, LAPTOP = Policy(False), Policy(True)
