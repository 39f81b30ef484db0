"""The body that tells which bucket a customer wants outputs in. Knows nothing of how a bucket is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from schemas.contract import HttpUrl, OneOf, Secret, Text, first_error_message, json_type_name
from schemas.errors import InvalidRequest

DEPLOY_TYPES = ("image_to_3d", "text_to_3d", "3d", "realtime")


class S3Details(BaseModel):
    """A customer's bucket. Secrets are in neither `repr` nor dump."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    deploy_type: Annotated[str, OneOf(DEPLOY_TYPES)] = Field(default="image_to_3d", description="this service's name")
    public_url: Annotated[str | None, HttpUrl()] = Field(default=None, description="what URLs of files begin with")
    region_name: Annotated[str, Text(64)] = Field(default="us-east-1", description="the bucket's region")
    endpoint_url: Annotated[str | None, HttpUrl()] = Field(default=None, description="the S3-compatible service")
    aws_access_key_id: Annotated[SecretStr, Secret(is_token=True)] = Field(repr=False)
    aws_secret_access_key: Annotated[SecretStr, Secret(is_token=True)] = Field(repr=False)
    image_directory: Annotated[str, Text(512)] = Field(default="", description="folder in the bucket")
    bucket: Annotated[str, Text(255)] = Field(default="", description="its name, where the endpoint does not tell it")


def parse_s3_details(body: object) -> S3Details:
    """Read the JSON body of `update_s3`.

    Raises:
        InvalidRequest: one sentence about the first field at fault; it holds no secret.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequest(f"the body must be a JSON object, got {json_type_name(body)}")
    given = {str(name): value for name, value in body.items() if value is not None and value != ""}
    try:
        return S3Details.model_validate(given)
    except ValidationError as error:
        raise InvalidRequest(first_error_message(error)) from None
