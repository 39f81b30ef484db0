#!/usr/bin/env bash
# Shows a job's progress until it ends: IMAGE_TO_3D_URL=… IMAGE_TO_3D_KEY=… ./events.sh 1207959551
set -euo pipefail
curl --fail-with-body --silent --show-error --no-buffer --header "key: $IMAGE_TO_3D_KEY" \
    "$IMAGE_TO_3D_URL/api/v1/enterprise/3d/events/$1"
