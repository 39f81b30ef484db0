"""`python -m tests.fakes.modal --port 0 --folder DIR`: a fake Modal server, started by hand, until interrupted."""

import argparse
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.fakes.modal.server import FakeModal


def main() -> None:
    """Starts the server and prints the variables to set for Modal's CLI."""
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.modal", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="gRPC port; 0 takes a free one")
    parser.add_argument("--folder", type=Path, help="an empty folder for files, volumes and containers")
    options = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with (
        tempfile.TemporaryDirectory(prefix="fake-modal-") as temporary,
        FakeModal(options.folder or Path(temporary), port=options.port) as fake_modal,
    ):
        # One write, including the last newline: a reader that got one line has got them all and may close the pipe. An
        # unbuffered `print` writes the newline separately.
        sys.stdout.write("".join(f"export {name}={value}\n" for name, value in fake_modal.environment().items()))
        sys.stdout.flush()
        stopped.wait()


if __name__ == "__main__":
    main()
