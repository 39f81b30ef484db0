#!/usr/bin/env bash
# Submits a local file: IMAGE_TO_3D_URL=http://127.0.0.1:8000 IMAGE_TO_3D_KEY=… ./submit.sh robot.png
set -euo pipefail
# curl reads the body from stdin: an image in base64 is too long for a command line.
python3 -c 'import base64, json, sys
print(json.dumps({"image": base64.b64encode(open(sys.argv[1], "rb").read()).decode(), "seed": 1}))' "$1" |
    curl --fail-with-body --silent --show-error "$IMAGE_TO_3D_URL/api/v6/3d/image_to_3d" \
        --header "key: $IMAGE_TO_3D_KEY" --header 'content-type: application/json' --data-binary @-
