"""Bodies that are long, deep, slow or of unknown callers: what is read, what is refused, and at what cost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import anyio
import pytest
from starlette.requests import Request

from pipeline.api import body_formats, request_body
from pipeline.api.body_formats import MAX_STRUCTURE
from pipeline.api.request_body import SMALL_BYTES, BodyReader, ByteBudget
from pipeline.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, ServiceBusy, Unauthorized

KNOWN = "i3d_known"
MIB = 2**20
IMAGE = "A" * (2 * SMALL_BYTES)


class Sender:
    """A client that sends a body in pieces; a number among them is a pause in seconds."""

    def __init__(self, pieces: Iterable[bytes | float], **headers: str) -> None:
        self._pieces = iter(pieces)
        self.sent_bytes = 0
        fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.request = Request({"type": "http", "method": "POST", "path": "/", "headers": fields}, self._receive)

    async def _receive(self) -> dict[str, Any]:
        for piece in self._pieces:
            if isinstance(piece, bytes):
                self.sent_bytes += len(piece)
                return {"type": "http.request", "body": piece, "more_body": True}
            await anyio.sleep(piece)
        return {"type": "http.request", "body": b"", "more_body": False}


def read(
    sender: Sender, *, header_key: str | None = None, max_bytes: int = 4 * MIB, takes_raw: bool = False
) -> dict[str, Any]:
    async def is_known(key: str) -> bool:
        return key == KNOWN

    async def run() -> dict[str, Any]:
        reader = BodyReader(max_bytes=max_bytes, is_known_key=is_known)
        return await reader.read(sender.request, header_key=header_key, takes_raw=takes_raw)

    return anyio.run(run)


def in_pieces(content: bytes, size: int = 50_000) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def endless(piece: bytes) -> Iterable[bytes]:
    while True:
        yield piece


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of every body that was parsed."""
    lengths: list[int] = []
    parse = body_formats.parse_object
    monkeypatch.setattr(body_formats, "parse_object", lambda content: lengths.append(len(content)) or parse(content))
    return lengths


def test_a_small_body_is_read_without_a_known_key() -> None:
    assert read(Sender([b'{"key": "x", ', b'"image": "y"}'])) == {"key": "x", "image": "y"}
    assert read(Sender([])) == {}
    assert read(Sender([b"  \n"])) == {}


@pytest.mark.parametrize("text", ["[1]", "{", "nope", '"a"', "NaN x"])
def test_what_is_not_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"the body (is not valid JSON|must be a JSON object)"):
        read(Sender([text.encode()]))


def test_text_in_another_encoding_is_named() -> None:
    with pytest.raises(InvalidRequest, match="the body is not UTF-8 text"):
        read(Sender(['{"track_id":"Müller"}'.encode("latin-1")], content_type="application/json; charset=latin1"))


@pytest.mark.parametrize("fields", [{"key": KNOWN, "image": IMAGE}, {"image": IMAGE, "key": KNOWN}])
def test_a_large_body_with_a_known_key_in_it_is_read_wherever_the_key_stands(fields: dict[str, str]) -> None:
    assert read(Sender(in_pieces(json.dumps(fields).encode()))) == fields


def test_a_large_body_under_a_known_key_in_a_header_is_read() -> None:
    fields = {"image": IMAGE}
    assert read(Sender(in_pieces(json.dumps(fields).encode())), header_key=KNOWN) == fields


def test_a_key_in_the_body_takes_precedence_over_any_header() -> None:
    fields = {"image": IMAGE, "key": KNOWN}
    assert read(Sender(in_pieces(json.dumps(fields).encode())), header_key="of-a-proxy") == fields


@pytest.mark.parametrize(
    ("fields", "message"), [({}, "API key required"), ({"key": "guess"}, "Invalid API key"), ({"key": 7}, "API key")]
)
def test_a_large_body_without_a_known_key_is_never_parsed(
    fields: dict[str, object], message: str, parsed: list[int]
) -> None:
    with pytest.raises(Unauthorized, match=message):
        read(Sender(in_pieces(json.dumps({"image": IMAGE, **fields}).encode())))
    assert parsed == []


@pytest.mark.parametrize("piece", [b"[],", b'{"a":', b"[[[[", b"1.5,", b'"k":0,'])
def test_a_body_of_very_many_values_is_refused_while_it_arrives(piece: bytes, parsed: list[int]) -> None:
    sender = Sender([b'{"key": "%s", "a": [' % KNOWN.encode(), *([piece * 10_000] * 40)])

    with pytest.raises(InvalidRequest, match=f"more than {MAX_STRUCTURE} values"):
        read(sender, header_key=KNOWN, max_bytes=MIB)

    assert parsed == []


def test_deep_nesting_within_the_bounds_is_a_refusal() -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        read(Sender([b'{"a":' + b"[" * 15_000 + b"]" * 15_000 + b"}"]))


@pytest.mark.parametrize(
    "number",
    ["9" * 4000, "-" + "9" * 301, "1." + "3" * 5000, "1e" + "9" * 301],
    ids=["digits", "negative", "decimals", "exponent"],
)
def test_a_number_of_very_many_digits_is_a_refusal(number: str) -> None:
    with pytest.raises(InvalidRequest, match=r"the body has a number of [0-9]+ characters; at most 300 are read"):
        read(Sender([f'{{"seed": {number}}}'.encode()]))


def test_an_announced_body_that_is_too_large_is_refused_before_it_is_read() -> None:
    sender = Sender(endless(b"A" * MIB), content_length=str(5 * MIB), expect="100-continue")
    with pytest.raises(BodyTooLarge, match="larger than 4 MiB"):
        read(sender)
    assert sender.sent_bytes == 0


def test_an_endless_body_is_drained_for_a_bounded_length_only() -> None:
    sender = Sender(endless(b"A" * MIB))
    with pytest.raises(BodyTooLarge):
        read(sender, header_key=KNOWN)
    assert sender.sent_bytes <= 18 * MIB  # the limit, and three times the limit discarded


def test_a_body_that_pauses_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "STALL_S", 0.05)
    with pytest.raises(BodyTooSlow, match="did not arrive in time"):
        read(Sender([b'{"key": ', 60.0, b'"x"}']))


def test_a_body_that_trickles_is_refused_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "GRACE_S", 0.2)
    with pytest.raises(BodyTooSlow):
        read(Sender(piece for _ in range(10_000) for piece in (b"x", 0.01)))


def test_the_budget_of_unknown_callers_is_shared_and_released() -> None:
    async def run() -> list[str]:
        events: list[str] = []
        budget = ByteBudget(10)

        async def hold(name: str, size_bytes: int, until: anyio.Event) -> None:
            async with budget.reserve(size_bytes, wait_s=60):
                events.append(f"{name} in")
                await until.wait()
            events.append(f"{name} out")

        first, second = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, "a", 6, first)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(hold, "b", 6, second)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ServiceBusy):
                async with budget.reserve(6, wait_s=0.01):
                    events.append("never")
            first.set()
            second.set()
        async with budget.reserve(10, wait_s=0):
            events.append("all is free")
        return events

    assert anyio.run(run) == ["a in", "a out", "b in", "b out", "all is free"]
