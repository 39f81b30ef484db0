"""A small app that uses each feature the plane carries."""

import modal

app = modal.App("plane-sample")
image = modal.Image.debian_slim(python_version="3.12").env({"FROM_IMAGE": "yes"})
outputs = modal.Volume.from_name("plane-outputs", create_if_missing=True, version=2)
weights = modal.Volume.from_name("plane-weights", create_if_missing=True)
state = modal.Dict.from_name("plane-state", create_if_missing=True)


@app.function(image=image)
def double(number: int) -> int:
    print(f"doubling {number}")
    return number * 2


@app.local_entrypoint()
def main(number: int = 3) -> None:
    print(f"answer {double.remote(number)}")
