"""How slow and how unreliable the fake server is: latencies, and a share of calls that are lost, throttled or late.

Whether a call meets a fault depends on the seed, its method and how often that method was called since the conditions
were set, not on other methods, so that a test meets the same faults in each run as long as it makes the same calls.
"""

import random
from collections import Counter
from dataclasses import dataclass

from grpclib import GRPCError, Status
from modal_proto import api_pb2

OF_PROGRAMS = (
    "Dict",
    "Queue",
    "Volume",
    "FunctionMap",
    "FunctionPutInputs",
    "FunctionGetOutputs",
    "FunctionCallCancel",
    "FunctionCallFromId",
)
"""What programs ask for, by the first part of the method. What a container needs to take an input and to return its
outcome meets no faults: how Modal's workers repeat those calls is unknown."""


@dataclass(frozen=True)
class Conditions:
    """What is slower and less reliable than loopback.

    Attributes:
        latency_s: before each call of a method that `methods` names.
        lost_before: share of calls that are answered UNAVAILABLE without having had an effect.
        lost_after: share of calls that have their effect and are answered UNAVAILABLE. The client repeats both.
        throttled: share of calls that are refused with the request to repeat them after `retry_after_s`.
        late: share of calls that take effect after `late_s`.
        methods: the first parts of the methods that latency and faults apply to.
        commit_s, reload_s: added to each commit and reload of a Volume.
        boot_s: from the decision to start a container to the start of its process.
        restore_s: from the snapshot to the first hook after it.
        blob_bytes_per_s: rate at which blobs are served and accepted; None means no limit.
        seed: of the faults.
    """

    latency_s: float = 0.0
    lost_before: float = 0.0
    lost_after: float = 0.0
    throttled: float = 0.0
    late: float = 0.0
    late_s: float = 5.0
    retry_after_s: float = 1.0
    methods: tuple[str, ...] = OF_PROGRAMS
    commit_s: float = 0.0
    reload_s: float = 0.0
    boot_s: float = 0.0
    restore_s: float = 0.0
    blob_bytes_per_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.lost_before + self.lost_after + self.throttled + self.late > 1:
            raise ValueError("the shares of faults add up to more than 1")

    def applies_to(self, method: str) -> bool:
        """Whether a method has the latency and meets faults."""
        return method.startswith(self.methods)

    def fault(self, method: str, number: int) -> str | None:
        """The fault of a method's call of that number: `lost_before`, `lost_after`, `throttled`, `late`, or None."""
        drawn = random.Random(f"{self.seed}/{method}/{number}").random()
        for name in ("lost_before", "lost_after", "throttled", "late"):
            drawn -= getattr(self, name)
            if drawn < 0:
                return name
        return None


class FaultCounter:
    """The conditions that hold now, and how many faults of each kind each method has met."""

    def __init__(self, conditions: Conditions) -> None:
        self.faults: Counter[tuple[str, str]] = Counter()
        self.set(conditions)

    def set(self, conditions: Conditions) -> None:
        """Change the conditions; the calls of each method are numbered from 0 again."""
        self.conditions = conditions
        self._numbers: Counter[str] = Counter()

    def next_fault(self, method: str) -> str | None:
        """The fault that the next call of a method meets."""
        fault = self.conditions.fault(method, self._numbers[method])
        self._numbers[method] += 1
        if fault is not None:
            self.faults[method, fault] += 1
        return fault


def lost() -> GRPCError:
    """The answer to a lost call: what the client sees of a connection that broke."""
    return GRPCError(Status.UNAVAILABLE, "the call was lost by the fake Modal server")


def throttled(retry_after_s: float) -> GRPCError:
    """The answer to a throttled call, which the client repeats as often as it comes."""
    policy = api_pb2.RPCRetryPolicy(retry_after_secs=retry_after_s)
    return GRPCError(Status.RESOURCE_EXHAUSTED, "rate limited by the fake Modal server", [policy])
