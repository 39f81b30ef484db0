"""Bodies of every type: what forms, files, compressed and mislabelled bodies are read as, and what is refused."""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from pipeline.api.body_formats import MAX_STRUCTURE, FormBody, JsonBody, count_up_to
from pipeline.api.form_fields import IN_MEMORY_BYTES, MAX_FORM_FIELDS, FilePart
from pipeline.api.request_body import SMALL_BYTES
from pipeline.errors import BodyTooLarge, InvalidRequest, Unauthorized, UnsupportedMediaType
from tests.api.conftest import IMAGE, SUBMIT, Deployment
from tests.api.test_request_body import KNOWN, MIB, Sender, endless, in_pieces, read

PNG = base64.b64decode(IMAGE.partition(",")[2])
FORM = "application/x-www-form-urlencoded"


def multipart(**parts: Any) -> tuple[bytes, str]:
    """A multipart body as httpx makes it, and its type; a part that is a tuple is a file."""
    files = [(name, part) for name, value in parts.items() for part in (value if isinstance(value, list) else [value])]
    request = httpx.Request(
        "POST", "http://x", files=[(n, v if isinstance(v, tuple) else (None, str(v))) for n, v in files]
    )
    return request.read(), request.headers["content-type"]


def read_as(content: bytes, content_type: str, **options: Any) -> dict[str, Any]:
    return read(Sender(in_pieces(content), content_type=content_type), **options)


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("key=k&image=https%3A%2F%2Fa.example%2Fb.png", {"key": "k", "image": "https://a.example/b.png"}),
        ("track_id=a+b%2Bc&seed=7", {"track_id": "a b+c", "seed": "7"}),
        ("image=a&image=b", {"image": ["a", "b"]}),
        ("image[]=a", {"image": ["a"]}),
        ("image%5B0%5D=a&image%5B1%5D=b", {"image": ["a", "b"]}),
        ('image=["a","b"]', {"image": ["a", "b"]}),
        ("lods=[100, 50]", {"lods": [100, 50]}),
        ("webhook=null&engine=", {"webhook": None, "engine": ""}),
        ("track_id=[1]", {"track_id": "[1]"}),
        ("note=[not json", {"note": "[not json"}),
        ("image=data:image/png;base64,a+/=", {"image": "data:image/png;base64,a+/="}),
        ("share=50%", {"share": "50%"}),
    ],
)
def test_a_form_is_read_as_the_json_that_it_stands_for(form: str, fields: dict[str, object]) -> None:
    assert read_as(form.encode(), FORM) == fields


def test_a_long_value_of_a_form_is_decoded() -> None:
    text = "é+/ =%" * 60_000
    assert read_as(urlencode({"note": text}).encode(), FORM, header_key=KNOWN) == {"note": text}
    with pytest.raises(InvalidRequest, match="begins no escape"):
        read_as(b"note=" + b"%zz" * 60_000, FORM, header_key=KNOWN)


@pytest.mark.parametrize("kind", ["", FORM, "text/plain;charset=UTF-8", "image/png", "multipart/form-data"])
def test_json_is_read_whatever_its_type_says(kind: str) -> None:
    assert read_as(b' {"image": "a=b&c"}', kind) == {"image": "a=b&c"}
    assert read_as("{}".encode("utf-16"), kind) == {}


@pytest.mark.parametrize("kind", ["text/plain", "image/png", "application/xml", "text/html; charset=utf-8"])
def test_another_type_is_refused_with_those_that_are_taken(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=r"is not taken here; application/json, multipart/form-data and"):
        read_as(b"<image>", kind)


def test_files_of_a_multipart_form_are_images_whatever_their_fields_are_called() -> None:
    content, kind = multipart(key=KNOWN, data=("a.png", PNG, "image/png"), multi_image="true", file=("b", b"second"))
    fields = read_as(content, kind)
    files = fields.pop("image")
    assert fields == {"key": KNOWN, "multi_image": "true"}
    assert [file.content() for file in files] == [PNG, b"second"]
    assert [base64.b64decode(file.as_base64()) for file in files] == [PNG, b"second"]


def test_a_file_that_is_named_in_another_script_alone_is_a_file() -> None:
    content, kind = multipart(image=("name", PNG))
    content = content.replace(b'filename="name"', b"filename*=utf-8''%C3%BC.png")
    assert read_as(content, kind)["image"].content() == PNG


def test_a_field_without_a_name_is_none() -> None:
    content, kind = multipart(**{"": "x", "webhook": "y"})
    assert read_as(content, kind) == {"webhook": "y"}


def test_an_unused_file_input_is_no_image() -> None:
    content, kind = multipart(key=KNOWN, image=[("", b"", "application/octet-stream")], webhook="")
    assert read_as(content, kind) == {"key": KNOWN, "webhook": ""}


@pytest.mark.parametrize("is_key_first", [True, False])
@pytest.mark.parametrize("size_bytes", [2 * SMALL_BYTES, IN_MEMORY_BYTES + 7])
def test_a_large_form_is_read_for_a_known_key_wherever_it_stands(is_key_first: bool, size_bytes: int) -> None:
    parts: dict[str, Any] = {"key": KNOWN, "image": ("a.png", b"\r\n--A" * (size_bytes // 5), "image/png")}
    content, kind = multipart(**parts if is_key_first else dict(reversed(parts.items())))
    file = read_as(content, kind)["image"]
    assert isinstance(file, FilePart) and file.content() == parts["image"][1]


def test_a_large_form_without_a_known_key_is_refused() -> None:
    for parts, message in (({}, "API key required"), ({"key": "guess"}, "Invalid API key")):
        content, kind = multipart(image=("a.png", bytes(3 * SMALL_BYTES), "image/png"), **parts)
        with pytest.raises(Unauthorized, match=message):
            read_as(content, kind)
    with pytest.raises(Unauthorized, match="Invalid API key"):
        read_as(b"image=" + b"A" * 3 * SMALL_BYTES + b"&key=guess", FORM)


def test_a_boundary_that_the_type_does_not_name_is_the_first_line() -> None:
    content, _ = multipart(key="k", image=("a.png", PNG))
    assert read_as(content, "multipart/form-data")["image"].content() == PNG


@pytest.mark.parametrize(
    "content",
    [
        b"--x\r\n",
        b"no boundary at all",
        b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\nvalue",
        b"--b\r\nA\r\n\r\n",
    ],
)
def test_a_broken_multipart_form_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="multipart/form-data"):
        read_as(content, "multipart/form-data; boundary=b")


def test_a_form_of_very_many_fields_is_refused_while_it_arrives() -> None:
    sender = Sender(endless(b"a=1&" * 1000), content_type=FORM)
    with pytest.raises(InvalidRequest, match=f"more than {MAX_FORM_FIELDS} fields"):
        read(sender, header_key=KNOWN, max_bytes=MIB)
    assert sender.sent_bytes < 5 * MIB  # what is discarded

    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    with pytest.raises(InvalidRequest, match=f"more than {MAX_FORM_FIELDS} fields"):
        read_as(part * (MAX_FORM_FIELDS + 1), "multipart/form-data; boundary=b", header_key=KNOWN)


def compressed(content: bytes, coding: str) -> bytes:
    if coding in ("gzip", "x-gzip"):
        return gzip.compress(content, mtime=0)
    raw = zlib.compressobj(wbits=-15)
    return zlib.compress(content) if coding == "deflate" else raw.compress(content) + raw.flush()


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "deflate without header"])
@pytest.mark.parametrize("size", [10, 3 * SMALL_BYTES])
def test_a_compressed_body_is_decoded(coding: str, size: int) -> None:
    fields = {"image": "A" * size, "key": KNOWN}
    sender = Sender(
        in_pieces(compressed(json.dumps(fields).encode(), coding), 7), content_encoding=coding.partition(" ")[0]
    )
    assert read(sender) == fields


@pytest.mark.parametrize("piece_bytes", [1, 40, 1000])
@pytest.mark.parametrize("padding", [b"", bytes(700)])
def test_a_gzip_body_of_several_members_is_decoded(padding: bytes, piece_bytes: int) -> None:
    text = json.dumps({"image": "A" * 100}).encode()
    content = b"".join(gzip.compress(part) for part in (text[:50], b"", text[50:])) + padding
    assert read(Sender(in_pieces(content, piece_bytes), content_encoding="gzip")) == {"image": "A" * 100}


@pytest.mark.parametrize(
    "header", ["identity", "utf-8", "UTF-8", "base64", "application/json", "none", "identity, identity"]
)
def test_what_is_no_encoding_is_ignored(header: str) -> None:
    assert read(Sender([b'{"image":"a"}'], content_encoding=header)) == {"image": "a"}


def test_an_encoding_beside_none_is_undone() -> None:
    assert read(Sender([gzip.compress(b'{"image":"a"}')], content_encoding="identity, gzip")) == {"image": "a"}


def test_a_compressed_body_that_grows_too_large_is_refused_after_a_small_part_of_it() -> None:
    bomb = gzip.compress(bytes(64 * MIB))
    sender = Sender(in_pieces(bomb, 1000), content_encoding="gzip", content_type="application/octet-stream")
    with pytest.raises(BodyTooLarge, match="larger than 4 MiB"):
        read(sender, header_key=KNOWN, takes_raw=True)


@pytest.mark.parametrize(
    ("coding", "content", "message"),
    [
        ("gzip", b"{}", "not valid gzip data"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-3], "its end is missing"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"{}", "not valid gzip data"),
        ("gzip", gzip.compress(b"", mtime=0) * 65, "continues after the end"),
        ("deflate", zlib.compress(b"{}") * 2, "continues after the end"),
        ("deflate", b"x", "its end is missing"),
        ("br", b"{}", "br is not taken; gzip and deflate are"),
        ("gzip, gzip", b"{}", "gzip, gzip is not taken"),
        ("gzip, br, gzip, br, gzip", b"{}", "5 encodings on top of each other are not taken"),
    ],
)
def test_a_body_that_is_not_encoded_as_it_says_is_refused(coding: str, content: bytes, message: str) -> None:
    with pytest.raises((InvalidRequest, UnsupportedMediaType), match=message):
        read(Sender([content], content_encoding=coding))


def test_a_submit_takes_forms_as_no_code_tools_send_them(deployment: Deployment) -> None:
    """n8n and Make send every field of their form, blank ones as "", numbers and booleans as text."""
    blank = {"webhook": "", "track_id": "", "seed": "", "engine": "", "render": "", "output_format": "", "temp": ""}
    given = {"key": deployment.key, "resolution": "128", "no_texture": "true", **blank}
    headers = {"prefer": "wait=0"}
    for answer in (
        deployment.client.post(SUBMIT, data={**given, "image": IMAGE}, headers=headers),
        deployment.client.post(SUBMIT, data=given, files={"image": ("a.png", PNG)}, headers=headers),
        deployment.client.post(SUBMIT, data=given, files={"data": ("blob", PNG, "image/png")}, headers=headers),
    ):
        assert answer.status_code == 200, answer.text
        meta = answer.json()["meta"]
        assert (meta["resolution"], meta["no_texture"], meta["output_format"]) == (128, True, "obj")
        stored = json.loads(deployment.service.store.request_of(answer.json()["id"]))
        assert [image.rpartition(",")[2] for image in stored["image"]] == [IMAGE.partition(",")[2]]


def test_every_route_with_a_body_takes_a_form(deployment: Deployment) -> None:
    job_id = deployment.submit()["id"]
    for path, fields in (
        ("/api/v1/enterprise/3d/fetch", {"request_id": str(job_id)}),
        (f"/api/v1/enterprise/3d/fetch/{job_id}", {}),
        ("/api/v1/enterprise/3d/list", {"status": "", "track_id": "", "limit": "1", "before": ""}),
        (f"/api/v1/enterprise/3d/cancel/{job_id}", {}),
    ):
        answer = deployment.client.post(path, data={"key": deployment.key, **fields}, headers={"prefer": "wait=0"})
        assert answer.status_code == 200, answer.text
    refused = deployment.client.post("/api/v1/enterprise/update_s3", data={"key": deployment.key, "bucket": ""})
    assert (refused.status_code, refused.json()["message"]) == (400, "aws_access_key_id is required")


@pytest.mark.parametrize("field", ["webhook", "output_format", "seed", "multi_image", "engine", "render", "resolution"])
@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_text_means_not_given(deployment: Deployment, field: str, blank: str) -> None:
    given, absent = (deployment.submit(**fields)["meta"] for fields in ({field: blank}, {}))
    assert given | {"file_prefix": ""} == absent | {"file_prefix": ""}


def test_another_type_is_answered_with_415(deployment: Deployment) -> None:
    headers = {"key": deployment.key, "content-type": "image/png"}
    answer = deployment.client.post(SUBMIT, content=PNG, headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (415, "unsupported_media_type")
    assert "multipart/form-data" in answer.json()["message"]


def test_curl_sends_json_under_the_type_of_forms(deployment: Deployment) -> None:
    body = json.dumps({"key": deployment.key, "image": IMAGE})
    headers = {"content-type": FORM, "prefer": "wait=0"}
    assert deployment.client.post(SUBMIT, content=body, headers=headers).json()["status"] == "processing"
    unescaped = f"key={deployment.key}&image={IMAGE}&note={quote('ä')}"
    assert deployment.client.post(SUBMIT, content=unescaped, headers=headers).json()["status"] == "processing"


@pytest.mark.parametrize("most", [0, 1, 7, 1000])
def test_a_count_ends_at_its_bound(most: int) -> None:
    rng = random.Random(most)
    for length in (0, 1, 2, 50, 5000):
        piece = bytes(rng.choices(b"ab,{", k=length))
        assert count_up_to(most, b",", piece) == min(most, piece.count(b","))


def test_the_bound_of_values_holds_wherever_the_body_is_cut() -> None:
    content = b'{"a":[' + b"1," * (MAX_STRUCTURE // 2) + b"[" * (MAX_STRUCTURE // 2) + b"]}"
    for size in (1000, 4096, len(content)):
        body = JsonBody()
        with pytest.raises(InvalidRequest, match=f"more than {MAX_STRUCTURE} values"):
            for at in range(0, len(content), size):
                body.feed(content[at : at + size])
    exact = JsonBody()
    exact.feed(b"," * MAX_STRUCTURE)
    with pytest.raises(InvalidRequest, match="more than"):
        exact.feed(b",")


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (b'{"image":"' + b"A" * 100_000 + b'" , "key" : "k\\u00e9y"}', ["kéy"]),
        (b'{"\\"key\\":":"key","key":"a","key":"b"}', ["a", "b"]),
        (b'{"key":5,"key":"' + b"x" * 600 + b'"}', []),
        (b'{"key":"a\\', []),
        (b"".join(b'"key":"%d",' % number for number in range(9)), ["0", "1", "2", "3"]),
        (b'"key"' * 2000 + b'"key":"late"', []),
    ],
)
def test_keys_are_found_anywhere_in_json_up_to_a_bound(content: bytes, keys: list[str]) -> None:
    body = JsonBody()
    body.feed(content)

    assert list(body.keys()) == keys


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (b"key=a%2Bb", ["a+b"]),
        (b"image=" + b"A" * 100_000 + b"&key=k&monkey=no&key=", ["k"]),
        (b"monkey=a&x=key=b", []),
        (b"&".join(b"key=%d" % number for number in range(9)), ["0", "1", "2", "3"]),
    ],
)
def test_keys_are_found_anywhere_in_a_form_up_to_a_bound(content: bytes, keys: list[str]) -> None:
    body = FormBody()
    body.feed(content)

    assert list(body.keys()) == keys
