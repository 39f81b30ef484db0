"""The cold path of a deployment on Modal, from the submit to the webhook, part by part, on the fake Modal server.

The fake runs every hook in every container, so what a memory snapshot saves is shown as a part of its own. The
latencies of the platform are stated, not measured: `--boot-s`, `--restore-s` and so on; `modal run modal_app.py::smoke`
measures them on an account. The parts between are this machine's own.

Two jobs are submitted, each to a deployment without a container: nobody has found the engine's weights before the
first, which therefore starts its container later. `--checkout` deploys another version's `modal_app.py` instead; one
that sets `block_network` must not, since the fake enforces it.
"""

from __future__ import annotations

import argparse
import base64
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.e2e.faults import Receiver
    from tests.fakes.modal import Conditions, ContainerFacts, FakeModal

ROOT = Path(__file__).resolve().parents[2]
KEY = "an-api-key-of-the-benchmark"
WAIT_S = 600.0
SCALEDOWN_S = 60.0
"""How long an idle container stays: Modal's default, where a function says nothing else."""
STATED = {
    "latency_s": 0.02,
    "commit_s": 0.7,
    "reload_s": 0.3,
    "boot_s": 1.0,
    "restore_s": 1.0,
    "blob_bytes_per_s": 100e6,
}
"""What is assumed of Modal where nothing is given: an operation of a Dict, a commit, a reload, a container's boot, its
restore from a snapshot, and the transfer of large values."""
UNSET = ("DATABASE_URL", "IMAGE_TO_3D_ENGINES", "IMAGE_TO_3D_GPU_MIN_CONTAINERS", "IMAGE_TO_3D_WEB_MIN_CONTAINERS")
"""Settings of the operator's shell that would change what is measured."""
BEFORE_SNAPSHOT = "before the snapshot"


@dataclass(frozen=True)
class Part:
    """A part of one container's time; `at_s` is its begin, from the submit."""

    container: str
    what: str
    at_s: float
    seconds: float


def parts_of(container: ContainerFacts, submitted_at: float) -> list[Part]:
    """The parts of a container's time up to the end of its last input, in order."""
    names = {
        "boot": "queue and boot",
        "snapshot": BEFORE_SNAPSHOT,
        "restored": "restore",
        "ready": "after the restore" if "restored" in container.events else "imports and hooks",
    }
    parts, since = [], container.created_at
    for event, at in zip(container.events, container.event_times, strict=True):
        if event in names:
            what = names[event]
        elif event.startswith("begin of "):
            what = "waits for an input"
        elif event.startswith("end of "):
            what = "input"
        else:
            break
        parts.append(Part(container.function.removesuffix(".*"), what, since - submitted_at, at - since))
        since = at
    return parts


def covered_s(parts: Iterable[Part]) -> float:
    """The seconds that at least one of the parts covers."""
    covered, until = 0.0, float("-inf")
    for part in sorted(parts, key=lambda part: part.at_s):
        end = part.at_s + part.seconds
        covered += max(0.0, end - max(until, part.at_s))
        until = max(until, end)
    return covered


def report(parts: Sequence[Part], total_s: float) -> str:
    """The table, and what the snapshots save of it at most."""
    lines = [f"{'container':<18} {'part':<22} {'from':>8} {'seconds':>8}"]
    lines += [
        f"{part.container:<18} {part.what:<22} {part.at_s:8.2f} {part.seconds:8.2f}"
        for part in sorted(parts, key=lambda part: part.at_s)
        if part.seconds >= 0.005
    ]
    saved_s = covered_s(part for part in parts if part.what == BEFORE_SNAPSHOT)
    lines.append(f"from the submit to the webhook: {total_s:.2f} s")
    lines.append(f"in containers that are restored from their snapshots: {total_s - saved_s:.2f} s or more")
    return "\n".join(lines)


def measure(conditions: Conditions, engine: str, *, checkout: Path, image: bytes) -> Iterator[str]:
    """Deploy, then twice submit a job to a deployment without a container, and tell the parts up to its webhook."""
    from tests.e2e.faults import Receiver
    from tests.fakes.modal import FakeModal, Limits

    with (
        tempfile.TemporaryDirectory(prefix="cold-") as name,
        FakeModal(Path(name), limits=Limits(scaledown_s=SCALEDOWN_S)) as fake_modal,
        Receiver() as receiver,
    ):
        deploy(fake_modal, engine, checkout)
        fake_modal.conditions = conditions
        for which in ("first", "second"):
            yield f"the {which} job\n{_cold_job(fake_modal, receiver, image)}"
            fake_modal.wait_until(lambda: all(each.is_ended for each in fake_modal.containers()), timeout_s=WAIT_S)


def _cold_job(fake_modal: FakeModal, receiver: Receiver, image: bytes) -> str:
    """The parts of one job."""
    import httpx

    encoded = base64.b64encode(image).decode()
    fields = {"key": KEY, "image": encoded, "resolution": 64, "texture_size": 512, "webhook": receiver.url}
    submitted_at = time.time()
    url = f"{fake_modal.web_url('web')}/api/v6/3d/image_to_3d"
    answer = httpx.post(url, json=fields, timeout=WAIT_S, follow_redirects=True)
    answered_s = time.time() - submitted_at
    job_id = answer.raise_for_status().json()["id"]
    receiver.wait_for(job_id, timeout_s=WAIT_S)
    fake_modal.wait_until(lambda: all(call.is_finished for call in fake_modal.calls("deliver_webhooks")))
    started = [each for each in fake_modal.containers() if each.created_at >= submitted_at]
    parts = [part for each in started for part in parts_of(each, submitted_at)]
    total_s = receiver.delivered_at[job_id] - submitted_at
    return f"{report(parts, total_s)}\nthe submit was answered after {answered_s:.2f} s"


def deploy(fake_modal: FakeModal, engine: str, checkout: Path) -> None:
    """Deploy the app of a checkout with test weights."""
    fake_modal.create_secret("image-to-3d", {"IMAGE_TO_3D_API_KEY": KEY, "IMAGE_TO_3D_MASTER_KEY": KEY})
    settings = {
        "IMAGE_TO_3D_ENGINE": engine,
        "IMAGE_TO_3D_WEIGHTS": "tiny",
        "IMAGE_TO_3D_ALLOW_PRIVATE_ADDRESSES": "1",
        "IMAGE_TO_3D_SUBMIT_WAIT_S": "0",
    }
    unset = [part for name in (*UNSET, "PYTHONPATH") for part in ("-u", name)]
    assigned = [f"{name}={value}" for name, value in (settings | fake_modal.environment()).items()]
    command = ["env", *unset, *assigned, sys.executable, "-m", "modal", "deploy", "modal_app.py"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def add_options(parser: argparse._ArgumentGroup) -> None:
    """The stated latencies and the engine."""
    for name, value in STATED.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, dest=name, type=float, default=value, help=f"default: {value:g}")
    parser.add_argument("--engine", default="preview", help="with its test weights; default: preview")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose modal_app.py is deployed; default: this one")
    parser.add_argument("--image", type=Path, help="default: a drawn figure of 96 × 96 pixels")


def main(arguments: argparse.Namespace) -> int:
    """Print the stated latencies and the parts; returns 0."""
    from tests.fakes.images import draw_figure, encode
    from tests.fakes.modal import Conditions, reason_unavailable

    if (reason := reason_unavailable()) is not None:
        print(reason, file=sys.stderr)
        return 2
    conditions = Conditions(**{name: getattr(arguments, name) for name in STATED})
    print("stated:", ", ".join(f"{name} {getattr(conditions, name):g}" for name in STATED))
    image = arguments.image.read_bytes() if arguments.image else encode(draw_figure(96))
    for found in measure(conditions, arguments.engine, checkout=arguments.checkout, image=image):
        print(found)
    return 0
