"""What a call costs on Modal: `python scripts/cost.py table|simulate|sources|measured`; each has `--help`."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # piped into `head`, it ends without a word
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(importlib.import_module("scripts.costs.report").main(sys.argv[1:]))
