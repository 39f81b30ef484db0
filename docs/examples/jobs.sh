#!/usr/bin/env bash
# Lists a key's jobs, cancels one, deletes one, and shows usage:
# IMAGE_TO_3D_URL=… IMAGE_TO_3D_KEY=… ./jobs.sh 1207959551
set -euo pipefail
api="$IMAGE_TO_3D_URL/api/v1/enterprise/3d"
post() {
    curl --fail-with-body --silent --show-error "$1" --header "key: $IMAGE_TO_3D_KEY" \
        --header 'content-type: application/json' --data "${2:-{\}}"
    echo
}
post "$api/list" '{"status": "success", "limit": 20}'
post "$api/cancel/$1" # a job that has ended stays as it is
post "$api/delete/$1" # its record and its temporary outputs
curl --fail-with-body --silent --show-error --header "key: $IMAGE_TO_3D_KEY" "$IMAGE_TO_3D_URL/api/v1/usage?format=csv"
