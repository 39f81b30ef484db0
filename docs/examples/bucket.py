"""Sends the outputs of a key to a bucket from now on: `python bucket.py https://s3.example.com/assets`."""

import os
import sys

import httpx

answer = httpx.post(
    f"{os.environ['IMAGE_TO_3D_URL']}/api/v1/enterprise/update_s3",
    headers={"key": os.environ["IMAGE_TO_3D_KEY"]},
    json={
        "deploy_type": "image_to_3d",
        "endpoint_url": sys.argv[1],
        "region_name": "us-east-1",
        "image_directory": "3d",
        "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
    },
    timeout=120,  # the service writes, reads and deletes a test object first
)
print(answer.json()["message"])
sys.exit(answer.is_error)
