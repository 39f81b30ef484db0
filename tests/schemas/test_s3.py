"""The body that names a customer's bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidRequest
from schemas.s3 import S3Details, parse_s3_details
from tests.schemas.test_request import JSON_VALUES

GOOD = {
    "deploy_type": "image_to_3d",
    "public_url": "https://cdn.example.com/3d",
    "region_name": "eu-west-1",
    "endpoint_url": "https://bucket.s3.amazonaws.com",
    "aws_access_key_id": "AKIA-never-shown",
    "aws_secret_access_key": "hunter2-hunter2",
    "image_directory": "out",
}


def test_the_documented_body_is_read_and_keeps_its_secrets() -> None:
    details = parse_s3_details(GOOD)
    assert details.aws_secret_access_key.get_secret_value() == "hunter2-hunter2"
    assert "hunter2" not in repr(details) + details.model_dump_json() and "AKIA" not in repr(details)


def test_a_key_that_was_pasted_with_a_line_break_is_read() -> None:
    assert parse_s3_details(GOOD | {"aws_access_key_id": " AKIA1\n"}).aws_access_key_id.get_secret_value() == "AKIA1"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"aws_access_key_id": None}, "aws_access_key_id is required"),
        ({"deploy_type": "video"}, "deploy_type must be one of image_to_3d, text_to_3d, 3d, realtime, got 'video'"),
        ({"endpoint_url": "s3://x"}, "endpoint_url must be an http or https URL, got 's3://x'"),
        ({"region_name": "a\nb"}, "region_name must be one line of at most 64 characters, got 'a\\nb'"),
        ({"aws_secret_access_key": 5}, "aws_secret_access_key must be a text of at most 4096 characters, got a number"),
        (
            {"aws_access_key_id": "AKIA…"},
            "aws_access_key_id must be visible ASCII characters without spaces",
        ),
    ],
)
def test_a_refusal_is_one_sentence(changed: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_s3_details(GOOD | changed)
    assert str(refused.value) == sentence


@given(st.dictionaries(st.sampled_from([*S3Details.model_fields]), JSON_VALUES) | JSON_VALUES)
def test_any_json_is_details_or_one_sentence(body: object) -> None:
    try:
        assert isinstance(parse_s3_details(body), S3Details)
    except InvalidRequest as refused:
        assert "\n" not in str(refused)
