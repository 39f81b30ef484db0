"""Reads the Dockerfile, and runs its steps where there is no Docker: `python -m tests.docs.containers TARGET ROOT`.

ROOT is a folder with a system that has Python (made by debootstrap, say). The steps run in it by chroot, as root until
`USER`, and `python` and `pip` are those of a virtual environment in it. Knows the instructions that our Dockerfile uses
and no others.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTIONS = {
    "FROM", "ENV", "ARG", "WORKDIR", "RUN", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD",
}  # fmt: skip


@dataclass
class Stage:
    """One stage of a Dockerfile: what it builds on, and its instructions."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def read_stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, in their order."""
    stages: dict[str, Stage] = {}
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction not in INSTRUCTIONS:
            raise ValueError(f"unknown instruction: {line}")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = Stage(name, base)
        else:
            [*stages.values()][-1].steps.append((instruction, rest))
    return stages


def steps_of(stages: dict[str, Stage], target: str) -> list[tuple[str, str]]:
    """All instructions that make a target, those of its bases first."""
    stage = stages[target]
    before = steps_of(stages, stage.base) if stage.base in stages else []
    return [*before, *stage.steps]


def environment_of(steps: list[tuple[str, str]]) -> dict[str, str]:
    """What ENV and ARG set."""
    pairs = [pair for instruction, rest in steps if instruction in ("ENV", "ARG") for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def command_of(steps: list[tuple[str, str]]) -> list[str]:
    """The last CMD."""
    return json.loads([rest for instruction, rest in steps if instruction == "CMD"][-1])


def sources_of(steps: list[tuple[str, str]]) -> list[str]:
    """What COPY takes from the repository."""
    return [source for instruction, rest in steps if instruction == "COPY" for source in rest.split()[:-1]]


def build(target: str, root: Path) -> None:
    """Run the steps of a target in `root`, and print the command that starts it."""
    steps = steps_of(read_stages((ROOT / "Dockerfile").read_text()), target)
    inherited = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environment = {"PATH": "/opt/python/bin:/usr/sbin:/usr/bin:/sbin:/bin", **inherited, **environment_of(steps)}
    folder, user = "/", "root"

    def run(command: str) -> None:
        setup = [f"cd {shlex.quote(folder)}", command]
        chroot = ["chroot", str(root), "/bin/sh", "-ec", "\n".join(setup)]
        if user != "root":
            chroot[1:1] = [f"--userspec={user}"]
        subprocess.run(chroot, env=environment, check=True)

    run("python3 -m venv /opt/python")
    for instruction, rest in steps:
        print(f"== {instruction} {rest[:100]}", flush=True)
        match instruction:
            case "WORKDIR":
                folder = rest
                (root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "RUN":
                run(rest)
            case "COPY":
                *sources, place = rest.split()
                for source in sources:
                    _copy(ROOT / source, root / folder.lstrip("/") / place, into=place.endswith("/"))
            case "USER":
                user = rest
    print(f"start it: chroot --userspec={user} {root} {shlex.join(command_of(steps))}")


def _copy(source: Path, place: Path, *, into: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, place / source.name if into else place)


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
