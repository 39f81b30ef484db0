"""Shows a job's progress until it ends: `python events.py 1207959551`."""

import json
import os
import sys

import httpx

url = f"{os.environ['IMAGE_TO_3D_URL']}/api/v1/enterprise/3d/events/{sys.argv[1]}"
headers = {"key": os.environ["IMAGE_TO_3D_KEY"]}
# A comment comes every 15 s while nothing changes, so a longer silence is a lost connection.
with httpx.stream("GET", url, headers=headers, timeout=30) as answer:
    answer.raise_for_status()
    event = ""
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            event = value
        elif name == "data":
            body = json.loads(value)
            if event == "end":
                print(body["status"], *body.get("output", []))
                break
            print(f"{body['stage']} {body['progress']} %")
