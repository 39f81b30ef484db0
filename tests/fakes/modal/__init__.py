"""A Modal control plane for tests, on loopback: the real CLI deploys to it, the real client calls it, and its
containers are processes of Modal's own entry point.

    with Plane(folder) as plane:
        subprocess.run([sys.executable, "-m", "modal", "deploy", "modal_app.py"], env=os.environ | plane.environment())
        httpx.get(plane.web_url("web") + "/health")

Real: Modal's command line, client library and container entry point (`python -m modal._container_entrypoint`), and the
wire between them and this package: the gRPC service on the protobuf definitions that the modal wheel ships, the HTTP
transfer of blobs, the ASGI messages. Each container is a process with only the files that the deploy sent (beside the
installed packages), only the variables of its image and secrets, and a mount namespace in which its Volumes lie at
their paths, read-only where they were asked for so. What a container writes to a Volume is seen by others after its
`commit` and their `reload`; both are refused while a file of the Volume is open. Containers are reused, take as many
inputs at once as `@modal.concurrent` says, run `enter`, snapshot and `exit` hooks, and end after the scaledown window.
A dead container's inputs run again whatever `retries` says. Retries, timeouts, cancellation, `max_containers`,
`min_containers`, `restrict_modal_access` and proxy authentication act.

Simulated or smaller than Modal:
- Images are taken as built: their ENV lines count, the packages are those installed here, and so is the Python.
- A memory snapshot is taken and restored within the same process, at once; there is no GPU and no GPU snapshot.
- Files mounted outside /root are not put at their absolute path; /root itself is a folder on PYTHONPATH and the working
  directory.
- At most three containers run per function, an idle one leaves after 5 s at most, and CPU, memory, disk, region,
  network and `buffer_containers` are recorded but not enforced (`Limits` says the numbers).
- Volumes are not committed in the background while a container runs, only when it ends, so that a forgotten commit
  shows.
- Cancelling a call does not cancel the calls that it made. Results and Dict entries do not expire. Schedules fire by
  hand.
- The web door answers with a 303 after 150 s without a response, as Modal does; it has no WebSockets, TLS or size
  limits.
- Left out: sandboxes, NFS, tunnels, clusters, batching, web methods of classes, `modal.Server`, staged deployments,
  statistics. What is called and not answered is counted in `Plane.unanswered`.

Tests that start a plane share the xdist group "modal_plane", so that they share two processors and not four.
Needs root (or CAP_SYS_ADMIN) and util-linux for the mount namespaces: `reason_unavailable()` says why a machine cannot.
"""

from tests.fakes.modal.facts import CallFacts, ContainerFacts, FunctionFacts
from tests.fakes.modal.launch import reason_unavailable
from tests.fakes.modal.plane import Plane
from tests.fakes.modal.runner import Limits

__all__ = ["CallFacts", "ContainerFacts", "FunctionFacts", "Limits", "Plane", "reason_unavailable"]
