"""Origins as operators write them and as browsers send them."""

from __future__ import annotations

import re

import pytest

from schemas.errors import InvalidRequest
from schemas.origins import origin_pattern, read_origin
from schemas.tokens import parse_token_request


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://app.example.com", "https://app.example.com"),
        (" HTTPS://App.Example.com:443/ ", "https://app.example.com"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://host:80", "http://host"),
        ("https://host:80", "https://host:80"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("https://*.example.com", "https://*.example.com"),
        ("http://localhost:*", "http://localhost:*"),
        ("*", "*"),
        ("null", "null"),
        ("app.example.com", None),
        ("https://app.example.com/page", None),
        ("https://user@app.example.com", None),
        ("https://a*.example.com", None),
        ("https://", None),
    ],
)
def test_an_origin_is_read_as_browsers_send_it(text: str, origin: str | None) -> None:
    assert read_origin(text) == origin


@pytest.mark.parametrize(
    ("origin", "admitted", "refused"),
    [
        (
            "https://*.example.com",
            ["https://a.example.com", "https://a.b.example.com"],
            [
                "https://example.com",
                "https://evil-example.com",
                "https://a.example.com.evil.org",
                "http://a.example.com",
            ],
        ),
        (
            "http://localhost:*",
            ["http://localhost", "http://localhost:5173"],
            [
                "http://localhost.evil.org",
                "http://localhost:5173.evil.org",
                "https://localhost:1",
                "http://localhostx:1",
            ],
        ),
    ],
)
def test_an_asterisk_admits_no_other_domain(origin: str, admitted: list[str], refused: list[str]) -> None:
    pattern = re.compile(origin_pattern(origin))
    assert all(pattern.fullmatch(each) for each in admitted)
    assert not any(pattern.fullmatch(each) for each in refused)


def test_the_origin_of_a_token_is_one_origin() -> None:
    assert parse_token_request({"origin": "https://App.example.com:443/"}).origin == "https://app.example.com"
    for origin in ("https://*.example.com", "https://app.example.com/page", "https://user@app.example.com"):
        with pytest.raises(InvalidRequest, match="must be an origin such as"):
            parse_token_request({"origin": origin})
