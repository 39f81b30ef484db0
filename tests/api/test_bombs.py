"""One costly request after the other on a real web process: its memory stays within a bound."""

from __future__ import annotations

from tests.api.bombs import bodies, cpu_s, peak_mib, post, start_peak, web_process

BOUND_MIB = 64
BOUND_LOOP_S = 0.2
"""CPU seconds of the event loop's thread. Measured: 0.09 to 0.13; with a loop over the bytes 0.2 to 0.35."""


def test_no_request_costs_the_web_process_more_than_its_bounds() -> None:
    with web_process() as (pid, port):
        statuses, loop_s = {}, {}
        for name, body in bodies().items():
            before_mib, before_s = start_peak(pid), cpu_s(pid, thread=pid)
            statuses[name], _ = post(port, body)
            assert peak_mib(pid) - before_mib <= BOUND_MIB, name
            loop_s[name] = cpu_s(pid, thread=pid) - before_s

    assert {name: spent_s for name, spent_s in loop_s.items() if spent_s > BOUND_LOOP_S} == {}

    accepted = {name for name, status in statuses.items() if status == 200}
    assert accepted == {"key, 19 MB image", "key, 19 MB image as a data URI"}
    assert all(400 <= status < 500 for name, status in statuses.items() if name not in accepted)
