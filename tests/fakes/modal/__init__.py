"""A fake Modal server for tests, on loopback. The real CLI deploys to it, the real client calls it, and its containers
are processes of Modal's own entry point.

    with FakeModal(folder) as fake_modal:
        subprocess.run(["modal", "deploy", "modal_app.py"], env=os.environ | fake_modal.environment())
        httpx.get(fake_modal.web_url("web") + "/health")

Real: Modal's command line, client library and container entry point (`python -m modal._container_entrypoint`), and the
protocol between them and this package: the gRPC service on the protobuf definitions that the modal wheel ships, the
HTTP transfer of blobs, the ASGI messages. Each container is a process with only the files that the deploy sent (beside
the installed packages), only the variables of its image and secrets, and a mount namespace in which its Volumes are at
their paths, read-only where the mount is read-only. Other containers see what a container writes to a Volume after its
`commit` and their `reload`; both are refused while a file of the Volume is open. Containers are reused, take as many
concurrent inputs as `@modal.concurrent` says, run `enter`, snapshot and `exit` hooks, and end after the scaledown
window. Retries, timeouts, cancellation, `max_containers`, `min_containers`, `restrict_modal_access` and proxy
authentication are implemented.

As strict as Modal is known to be:
- A function with `block_network` runs in a network namespace of its own. The server's gRPC methods are reached by a
  Unix socket; nothing else is, blobs included: arguments and results of spawned calls over 8 KiB.
- A dead container's inputs run again whatever `retries` says. Containers of a deployed app that crash, on start-up or
  while they run an input, are started again without end, with pauses that double; the call stays pending. An ephemeral
  app's calls fail with the reason.
- All apps share the limits of a workspace: 100 containers, 10 GPUs, 5 schedules (`Limits`, Modal's Starter plan).
- Entries of a Dict expire 7 days after their last use, by a clock that the test advances.
- `Conditions` make methods slow, lost (before or after their effect), throttled or late, from a seed, and say how long
  a boot, a restore, a commit, a reload and the transfer of a blob take.

Simulated or smaller than Modal:
- Images are not built: only their ENV lines count; the packages and the Python are those installed here.
- A memory snapshot is taken and restored within the same process, at once: every container runs the hooks before it.
  There is no GPU, so neither its absence after a restore nor a GPU snapshot shows.
- Files mounted outside /root are not placed at their absolute path. /root itself is a folder on PYTHONPATH and the
  working directory; every container of one fake server sees it at the same path, as on Modal.
- At most three containers run per function, an idle one leaves after 5 s at most, and CPU, memory, disk, region and
  `buffer_containers` are recorded but not enforced.
- Volumes are not committed in the background while a container runs, only when it ends, so that a forgotten commit
  shows. Times of files and folders are those of this machine's file system.
- Cancelling a call does not cancel the calls that it made. Results do not expire. Schedules fire when the test says so.
- The web endpoint answers 303 after 150 s without a response, as Modal does; it has no WebSockets, TLS or size limits.
- The pauses between crashes, the order in which waiting functions get freed containers, and how a workspace at its
  limit treats idle containers of other functions are guesses: Modal does not document them.
- Left out: sandboxes, NFS, tunnels, clusters, batching, web methods of classes, `modal.Server`, staged deployments,
  statistics. Calls to a method that is not implemented are counted in `FakeModal.unanswered`.

What it still cannot show: whether Modal lets blobs through `block_network` after all, what a Dict operation, a commit,
a boot and a restore really take, when Modal throttles, the speed of the images' file system, preemptions and
placement, and whether a Volume keeps the modification times of folders. `modal run modal_app.py::smoke` measures some
of these on a real account.

Tests that start a fake server share the xdist group "fake_modal", so that only one of them runs at a time.
Needs root (or CAP_SYS_ADMIN) and util-linux for the namespaces: `reason_unavailable()` says why a machine cannot.
"""

from tests.fakes.modal.conditions import Conditions
from tests.fakes.modal.facts import CallFacts, ContainerFacts, FunctionFacts
from tests.fakes.modal.launch import reason_unavailable
from tests.fakes.modal.runner import Limits
from tests.fakes.modal.server import FakeModal

__all__ = ["CallFacts", "Conditions", "ContainerFacts", "FakeModal", "FunctionFacts", "Limits", "reason_unavailable"]
