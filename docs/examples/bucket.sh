#!/usr/bin/env bash
# Sends the outputs of a key to a bucket from now on.
# IMAGE_TO_3D_URL=… IMAGE_TO_3D_KEY=… AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… ./bucket.sh https://s3.example.com/assets
set -euo pipefail
curl --fail-with-body --silent --show-error "$IMAGE_TO_3D_URL/api/v1/enterprise/update_s3" \
    --header "key: $IMAGE_TO_3D_KEY" --header 'content-type: application/json' --data-binary @- <<BODY
{"deploy_type": "image_to_3d", "endpoint_url": "$1", "region_name": "us-east-1", "image_directory": "3d",
 "aws_access_key_id": "$AWS_ACCESS_KEY_ID", "aws_secret_access_key": "$AWS_SECRET_ACCESS_KEY"}
BODY
