"""All checks by `spec.target`. A new kit adds its module and one line here."""

from __future__ import annotations

import importlib

from tests.parity.harness import Check

KIT_MODULES = ("tests.parity.trellis", "tests.parity.trellis_text", "tests.parity.triposr")


def all_targets() -> dict[str, Check]:
    """Return the checks of all kits whose module exists.

    Raises:
        ValueError: two kits define the same target.
    """
    targets: dict[str, Check] = {}
    for name in KIT_MODULES:
        try:
            kit = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name == name:
                continue
            raise
        if twice := targets.keys() & kit.TARGETS.keys():
            raise ValueError(f"{name} repeats the targets {sorted(twice)}")
        targets |= kit.TARGETS
    return targets
