"""What a call costs on Modal: `python scripts/cost_model/__main__.py table|simulate|sources|measured`; each has `--help`."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # piped into `head`, it ends without a word
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(importlib.import_module("scripts.cost_model.report").main(sys.argv[1:]))
