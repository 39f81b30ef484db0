"""How much each key may upload. Knows nothing of HTTP."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable

from pipeline.errors import RateLimited


class UploadAllowance:
    """How many bytes of uploads each key has in temporary storage, as far as this process stored them.

    Args:
        max_bytes: the most that a key may have; 0 is no limit.
        lifetime_s: how long an upload is kept.
        clock: seconds since 1970.
    """

    def __init__(self, *, max_bytes: int, lifetime_s: float, clock: Callable[[], float] = time.time) -> None:
        self._max_bytes = max_bytes
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: defaultdict[str, deque[tuple[float, int]]] = defaultdict(deque)

    def take(self, api_key_id: str, size_bytes: int) -> None:
        """Count an upload of a key.

        Raises:
            RateLimited: it would be more than the key may have.
        """
        if not self._max_bytes:
            return
        now = self._clock()
        with self._lock:
            kept = self._kept[api_key_id]
            while kept and kept[0][0] <= now:
                kept.popleft()
            used = sum(each for _, each in kept)
            if used + size_bytes <= self._max_bytes:
                kept.append((now + self._lifetime_s, size_bytes))
                return
            reset_at = kept[0][0] if kept else now + self._lifetime_s
        mib = self._max_bytes / 2**20
        raise RateLimited(
            f"Rate limit exceeded. This key may have {mib:g} MiB of uploads; they are kept {self._lifetime_s:g} s.",
            limit=self._max_bytes,
            remaining=max(0, self._max_bytes - used),
            reset_at=reset_at,
            retry_after_s=max(1, round(reset_at - now)),
        )
