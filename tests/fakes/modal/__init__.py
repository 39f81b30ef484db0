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
window. A dead container's inputs run again whatever `retries` says. Retries, timeouts, cancellation, `max_containers`,
`min_containers`, `restrict_modal_access` and proxy authentication are implemented.

Simulated or smaller than Modal:
- Images are not built: only their ENV lines count; the packages and the Python are those installed here.
- A memory snapshot is taken and restored within the same process, at once; there is no GPU and no GPU snapshot.
- Files mounted outside /root are not placed at their absolute path. /root itself is a folder on PYTHONPATH and the
  working directory; every container of one fake server sees it at the same path, as on Modal.
- At most three containers run per function, an idle one leaves after 5 s at most, and CPU, memory, disk, region,
  network and `buffer_containers` are recorded but not enforced (`Limits` says the numbers).
- Volumes are not committed in the background while a container runs, only when it ends, so that a forgotten commit
  shows.
- Cancelling a call does not cancel the calls that it made. Results and Dict entries do not expire. Schedules fire when
  the test says so.
- The web endpoint answers 303 after 150 s without a response, as Modal does; it has no WebSockets, TLS or size limits.
- Left out: sandboxes, NFS, tunnels, clusters, batching, web methods of classes, `modal.Server`, staged deployments,
  statistics. Calls to a method that is not implemented are counted in `FakeModal.unanswered`.

Tests that start a fake server share the xdist group "fake_modal", so that only one of them runs at a time.
Needs root (or CAP_SYS_ADMIN) and util-linux for the mount namespaces: `reason_unavailable()` says why a machine cannot.
"""

from tests.fakes.modal.facts import CallFacts, ContainerFacts, FunctionFacts
from tests.fakes.modal.launch import reason_unavailable
from tests.fakes.modal.runner import Limits
from tests.fakes.modal.server import FakeModal

__all__ = ["CallFacts", "ContainerFacts", "FakeModal", "FunctionFacts", "Limits", "reason_unavailable"]
