"""Jobs: records, transitions, limits, stores, and the worker loop. Knows nothing of HTTP or Modal."""
