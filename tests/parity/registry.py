"""All checks by `spec.target`. A new kit adds its module and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from tests.parity.harness import Check, Fixture

KIT_MODULES = ("tests.parity.trellis", "tests.parity.trellis_text", "tests.parity.triposr", "tests.parity.trellis2")


def all_targets() -> dict[str, Check]:
    """Return the checks of all kits whose module exists.

    Raises:
        ValueError: two kits define the same target, and the later one does not say which of its fixtures it claims.
    """
    targets: dict[str, Check] = {}
    for name in KIT_MODULES:
        try:
            kit = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name:
                continue
            raise
        claims = getattr(kit, "CLAIMS", {})
        if twice := targets.keys() & kit.TARGETS.keys() - claims.keys():
            raise ValueError(f"{name} repeats the targets {sorted(twice)}")
        for target, check in kit.TARGETS.items():
            targets[target] = _first_that_claims(claims[target], check, targets[target]) if target in claims else check
    return targets


def _first_that_claims(claims: Callable[[Fixture], bool], check: Check, other: Check) -> Check:
    """A check of the fixtures that a kit claims; the others are those of an earlier kit."""
    return lambda fixture: check(fixture) if claims(fixture) else other(fixture)
