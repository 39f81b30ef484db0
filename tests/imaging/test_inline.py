"""Images inside a request: data URIs, base64 and the check of the file signature."""

from __future__ import annotations

import base64
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import pytest

from pipeline.errors import InvalidRequest, UnreadableImage
from pipeline.imaging.decode import decode_image
from pipeline.imaging.inline import UNQUOTED_CHARS, at_most, check_inline, read_inline
from pipeline.imaging.signatures import require_accepted
from pipeline.net.download import MAX_BYTES
from tests.fakes.images import draw_figure, encode

PNG = b"\x89PNG\r\n\x1a\n of an image"
CONTENT = bytes(range(256)) * 3
STANDARD = base64.b64encode(CONTENT).decode()
URL_SAFE = base64.urlsafe_b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "source",
    [
        STANDARD,
        URL_SAFE,
        URL_SAFE.rstrip("="),
        "\n".join(STANDARD[k : k + 76] for k in range(0, len(STANDARD), 76)),
        f"data:image/png;base64,{STANDARD}",
        f"DATA:image/png;BASE64,{STANDARD}",
        f"data:image/png; base64,{STANDARD}",
        f"data: image/png ;charset=utf-8; base64 , {STANDARD}",
        f"data:image/png,{quote_from_bytes(CONTENT)}",
    ],
)
def test_every_spelling_gives_the_same_bytes(source: str) -> None:
    assert read_inline(source) == CONTENT


@pytest.mark.parametrize("source", ["no base64!", "a", "data:image/png;base64", "data:image/png;base64,%%%"])
def test_anything_else_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest):
        read_inline(source)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIC"])
def test_the_signature_of_every_accepted_format_passes_and_is_decoded(format: str) -> None:
    phone = Path(__file__).parent / "figure.heic"
    image = draw_figure(16, background=(255, 255, 255))[..., :3]
    content = phone.read_bytes() if format == "HEIC" else encode(image, format)

    require_accepted(content)

    assert decode_image(content).shape[2] == 4


@pytest.mark.parametrize(("content", "words"), [(b"", "is empty"), (b"<svg/>", "an SVG drawing"), (b"R", "not a")])
def test_other_content_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words):
        require_accepted(content)


def test_content_beyond_the_limit_is_refused() -> None:
    assert at_most(CONTENT) is CONTENT
    with pytest.raises(UnreadableImage, match=f"larger than {MAX_BYTES // 2**20} MiB"):
        at_most(bytes(MAX_BYTES + 1))


@pytest.mark.parametrize("lead", range(4))
def test_escapes_across_the_ends_of_pieces_are_decoded(lead: int) -> None:
    content = b"a" * (UNQUOTED_CHARS - lead) + bytes(range(256)) * 50 + b"_ \t\r\n=\n==3D%" * 9

    assert read_inline("data:image/png," + quote(content)) == content
    encoded = base64.b64encode(content).decode()
    assert read_inline("data:image/png;base64," + quote(encoded, safe="")) == content


@pytest.mark.parametrize("text", ["%41", "%", "%4", "%3D", "=", "é"])
@pytest.mark.parametrize("form", ["data:image/png,", "data:image/png;base64,"])
def test_memory_for_an_escaped_image_is_a_small_multiple_of_its_length(text: str, form: str) -> None:
    size_bytes = 3 << 19
    uri = form + text * (size_bytes // len(text))
    tracemalloc.start()

    with suppress(UnreadableImage, InvalidRequest):
        read_inline(uri)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * size_bytes


@pytest.mark.parametrize("text", ["%", "a%4", "%4g", "100%", "%\n", "%\r\n", "%%41", "%=", "%41%\n41", "% 41", "%é"])
@pytest.mark.parametrize("lead", ["", quote(PNG), quote(PNG) + "a" * UNQUOTED_CHARS])
def test_a_percent_sign_that_begins_no_escape_is_refused(text: str, lead: str) -> None:
    for read in (read_inline, check_inline):
        with pytest.raises(InvalidRequest, match="percent sign that begins no escape"):
            read(f"data:image/png,{lead}{text}")


def test_escaped_content_that_is_no_image_is_refused_by_its_first_bytes() -> None:
    with pytest.raises(UnreadableImage, match="not a readable image"):
        check_inline("data:image/png," + "%41" * UNQUOTED_CHARS + "%")  # what follows is not read
    check_inline("data:image/png," + quote(PNG) + "%41" * UNQUOTED_CHARS)


def test_base64_far_beyond_the_limit_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="larger than 20 MiB"):
        read_inline("A" * (MAX_BYTES * 2))


@pytest.mark.parametrize("head", ["", "data:image/png;base64,", "DATA:;BASE64,", "data:image/png;x=y; base64 ,"])
@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(PNG * 100_000).decode(),
        base64.b64encode(PNG * 100_000).decode().rstrip("="),
        base64.urlsafe_b64encode(PNG + bytes(range(256)) * 9000).decode(),
        base64.encodebytes(PNG * 50_000).decode(),
        " \n" * 700_000 + base64.b64encode(PNG).decode() + " = =\n",
        base64.b64encode(PNG).decode() + "A",
        base64.b64encode(PNG * 100_000).decode()[:-40] + "*" * 40,
        base64.b64encode(b"no image at all").decode(),
        "=",
        "",
    ],
    ids=range(10),
)
def test_the_check_without_the_content_agrees_with_reading_it(head: str, text: str) -> None:
    def outcome_of(work: Callable[[], object]) -> str:
        try:
            work()
        except (InvalidRequest, UnreadableImage) as error:
            return str(error)
        return "accepted"

    whole = outcome_of(lambda: require_accepted(read_inline(head + text)))
    assert outcome_of(lambda: check_inline(head + text)) == whole
