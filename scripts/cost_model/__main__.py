"""What a job costs on Modal: `python -m scripts.cost_model table|simulate|sources|measured`; each has `--help`."""

from __future__ import annotations

import importlib
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # piped into `head`, it ends silently
    sys.exit(importlib.import_module("scripts.cost_model.report").main(sys.argv[1:]))
