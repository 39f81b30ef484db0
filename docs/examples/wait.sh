#!/usr/bin/env bash
# Waits for a job and saves its files: IMAGE_TO_3D_URL=… IMAGE_TO_3D_KEY=… ./wait.sh 1207959551 out
set -euo pipefail
while true; do
    # Answers as soon as the job ends, after 60 s at the latest.
    job=$(curl --fail-with-body --silent --show-error --request POST "$IMAGE_TO_3D_URL/api/v6/3d/fetch/$1" \
        --header "key: $IMAGE_TO_3D_KEY" --header 'Prefer: wait=60')
    status=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["status"])' <<<"$job")
    [ "$status" = processing ] || break
done
if [ "$status" != success ]; then
    echo "$job" >&2
    exit 1
fi
mkdir -p "$2"
python3 -c 'import json, sys; print(*json.load(sys.stdin)["output"], sep="\n")' <<<"$job" | while read -r url; do
    curl --fail --silent --show-error --output "$2/$(basename "$url")" "$url"
    echo "$2/$(basename "$url")"
done
