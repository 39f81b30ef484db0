"""Images inside a request: data URIs and base64, whatever their length."""

from __future__ import annotations

import base64
import tracemalloc
from contextlib import suppress
from urllib.parse import quote

import pytest

from pipeline.errors import InvalidRequest, UnreadableImage
from pipeline.imaging.inline import MAX_BYTES, UNQUOTED_CHARS, read_inline


@pytest.mark.parametrize("lead", range(4))
def test_escapes_across_the_ends_of_pieces_are_decoded(lead: int) -> None:
    content = b"a" * (UNQUOTED_CHARS - lead) + bytes(range(256)) * 50 + b"_ \t\r\n=\n==3D%" * 9

    assert read_inline("data:image/png," + quote(content)) == content
    encoded = base64.b64encode(content).decode()
    assert read_inline("data:image/png;base64," + quote(encoded, safe="")) == content


@pytest.mark.parametrize("text", ["%41", "%", "%4", "%3D", "=", "é"])
@pytest.mark.parametrize("form", ["data:image/png,", "data:image/png;base64,"])
def test_memory_for_an_escaped_image_is_a_small_multiple_of_its_length(text: str, form: str) -> None:
    size_bytes = 4 << 20
    uri = form + text * (size_bytes // len(text))
    tracemalloc.start()

    with suppress(UnreadableImage, InvalidRequest):
        read_inline(uri)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * size_bytes


@pytest.mark.parametrize("text", ["%", "a%4", "%4g", "100%"])
def test_a_percent_sign_that_begins_no_escape_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="percent sign that begins no escape"):
        read_inline(f"data:image/png,{text}")


def test_base64_far_beyond_the_limit_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="larger than 20 MiB"):
        read_inline("A" * (MAX_BYTES * 2))
