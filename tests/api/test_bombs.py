"""One costly request after the other on a real web process: its memory stays within a bound."""

from __future__ import annotations

from tests.api.bombs import bodies, peak_mib, post, start_peak, web_process

BOUND_MIB = 64


def test_no_request_costs_the_web_process_more_than_its_bound() -> None:
    with web_process() as (pid, port):
        statuses = {}
        for name, body in bodies().items():
            before_mib = start_peak(pid)
            statuses[name], _ = post(port, body)
            assert peak_mib(pid) - before_mib <= BOUND_MIB, name

    accepted = {name for name, status in statuses.items() if status == 200}
    assert accepted == {"key, 19 MB image", "key, 19 MB image as a data URI"}
    assert all(400 <= status < 500 for name, status in statuses.items() if name not in accepted)
