"""What a CPU container loads while it imports the app file, so that its memory snapshot contains it.

Imports inside a function run after the snapshot, in each container anew. Which modules a container needs is in a
variable of its own, since every container imports the same file.
"""

from __future__ import annotations

import importlib

from pipeline.settings import PREFIX, present_variables

VARIABLE = f"{PREFIX}PRELOAD"
MODULES = {
    "jobs": "pipeline.on_modal.functions",
    "web": "pipeline.on_modal.web",
    "webhooks": "pipeline.on_modal.webhooks",
}


def preload_options(name: str) -> dict[str, object]:
    """The options of `app.function` for a function whose container is restored with the modules of that name."""
    if name not in MODULES:
        raise KeyError(name)
    return {"env": {VARIABLE: name}, "enable_memory_snapshot": True}


def preload() -> None:
    """Import what this container needs, and compile the kernels of jobs; nothing where the variable is not set."""
    name = present_variables((VARIABLE,)).get(VARIABLE)
    if name is None:
        return
    importlib.import_module(MODULES[name])
    if name == "jobs":
        from pipeline.on_modal.prewarm import start_prewarm

        start_prewarm().join()
