"""Texts of senders: URLs."""

from __future__ import annotations

import pytest

from schemas.contract import read_http_url
from schemas.errors import InvalidRequest
from schemas.request import parse_request
from schemas.s3 import parse_s3_details


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://host/a b.png", "http://host/a%20b.png"),
        ("  https://host/my photo (1).png?size=10 px#top \n", "https://host/my%20photo%20(1).png?size=10%20px#top"),
        ("https://host/a\tb\r\nc.png", "https://host/abc.png"),
        ("https:\\\\host\\a\\b.png?x=\\#\\", "https://host/a/b.png?x=\\#\\"),
        ("HTTPS://Host:8443/a\u00a0b", "HTTPS://Host:8443/a%C2%A0b"),
        ("http://host/a%20b.png?x=%2F", "http://host/a%20b.png?x=%2F"),  # escapes stay as they are
        ("http://[2606:4700::1111]:8080/Bücher/ä", "http://[2606:4700::1111]:8080/Bücher/ä"),
        ("http://user:pass@host", "http://user:pass@host"),
        ("http://host/\x07bell", "http://host/%07bell"),
    ],
)
def test_a_url_is_read_in_one_way_in_every_field(text: str, url: str) -> None:
    assert read_http_url(text) == url
    request = parse_request({"image": [text], "webhook": text, "multi_image": True}).request
    details = parse_s3_details(
        {"public_url": text, "endpoint_url": text, "aws_access_key_id": "a", "aws_secret_access_key": "b"}
    )
    assert (request.image, request.webhook) == ((url,), url)
    assert (details.public_url, details.endpoint_url) == (url, url)


@pytest.mark.parametrize(
    "text",
    ["http://", "http://ho st/", "http:///path", "http://host:0/", "http://host:port/", "http://host/\0", "\ud800"],
)
def test_what_is_no_url_is_refused_in_every_field(text: str) -> None:
    assert read_http_url(text) is None
    for field in ({"image": text}, {"image": "aGVsbG8=", "webhook": text}):
        if text.startswith("http"):
            with pytest.raises(InvalidRequest, match=next(reversed(field))):
                parse_request(field)
