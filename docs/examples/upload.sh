#!/usr/bin/env bash
# Stores an image once and submits it by its URL: IMAGE_TO_3D_URL=… IMAGE_TO_3D_KEY=… ./upload.sh robot.png
set -euo pipefail
post() { curl --fail-with-body --silent --show-error --header "key: $IMAGE_TO_3D_KEY" "$@"; }
uploaded=$(post "$IMAGE_TO_3D_URL/api/v1/enterprise/3d/uploads" --form "image=@$1")
url=$(sed 's/.*"url":"\([^"]*\)".*/\1/' <<<"$uploaded")
post "$IMAGE_TO_3D_URL/api/v6/3d/image_to_3d" --data-urlencode "image=$url" --data output_format=glb
echo
