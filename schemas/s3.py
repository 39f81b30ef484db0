"""The body that names the customer's bucket for outputs. Knows nothing of how a bucket is accessed."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from schemas.contract import HttpUrl, OneOf, Secret, Text, first_error_message, given_fields
from schemas.errors import InvalidRequest

DEPLOY_TYPES = ("image_to_3d", "text_to_3d", "3d", "realtime")


class S3Details(BaseModel):
    """A customer's bucket. Secrets are in neither `repr` nor dump."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    deploy_type: Annotated[str, OneOf(DEPLOY_TYPES)] = Field(default="image_to_3d", description="name of this service")
    public_url: Annotated[str | None, HttpUrl()] = Field(default=None, description="prefix of the files' URLs")
    region_name: Annotated[str, Text(64)] = Field(default="us-east-1", description="region of the bucket")
    endpoint_url: Annotated[str | None, HttpUrl()] = Field(default=None, description="URL of the S3-compatible service")
    aws_access_key_id: Annotated[SecretStr, Secret(is_token=True)] = Field(repr=False, description="access key")
    aws_secret_access_key: Annotated[SecretStr, Secret(is_token=True)] = Field(
        repr=False, description="its secret, encrypted at rest and never returned"
    )
    image_directory: Annotated[str, Text(512)] = Field(default="", description="folder in the bucket")
    addressing_style: Annotated[str, OneOf(("auto", "path", "virtual"))] = Field(
        default="auto",
        description="where the bucket's name goes: in the path, in front of the host, or as the service is known to "
        "take it (extension)",
    )
    bucket: Annotated[str, Text(255)] = Field(
        default="", description="name of the bucket, if the endpoint does not contain it"
    )


def parse_s3_details(body: object) -> S3Details:
    """Read the JSON body of `update_s3`.

    Raises:
        InvalidRequest: one sentence about the first invalid field; it contains no secret.
    """
    try:
        return S3Details.model_validate(given_fields(body))
    except ValidationError as error:
        raise InvalidRequest(first_error_message(error)) from None
