"""A small app that uses each feature of the fake Modal server."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import modal
import modal.experimental

app = modal.App("sample-app")
image = modal.Image.debian_slim(python_version="3.12").env({"FROM_IMAGE": "as built"})
outputs = modal.Volume.from_name("sample-outputs", create_if_missing=True, version=2)
weights = modal.Volume.from_name("sample-weights", create_if_missing=True)
state = modal.Dict.from_name("sample-state", create_if_missing=True)
secret = modal.Secret.from_name("sample-secret", required_keys=["SAMPLE_KEY"])

OUTPUTS = Path("/fake-modal-test/outputs")
WEIGHTS = Path("/fake-modal-test/weights")


@app.function(image=image, secrets=[secret, modal.Secret.from_dict({"INLINE": "here"})], env={"ENV": "there"})
def double(number: int) -> int:
    print(f"doubling {number} with {' '.join(os.environ[name] for name in ('FROM_IMAGE', 'INLINE', 'ENV'))}")
    return number * 2


@app.function(image=image, max_containers=1)
def look(what: str, argument: bytes = b"") -> object:
    """Answers questions about the container that runs it."""
    if what == "key":
        return os.environ.get("SAMPLE_KEY", "absent")
    if what == "length":
        return len(argument), argument
    if what == "process":
        return os.getpid(), sorted(name for name in os.environ if name.startswith("MODAL_TOKEN"))
    if what == "retire":
        modal.experimental.stop_fetching_inputs()
        return os.getpid()
    raise ValueError(what)


@app.function(image=image, block_network=True)
def isolated(what: str, argument: object = None) -> object:
    """Does what a function without a network can and cannot."""
    if what == "dict":
        state["isolated"] = argument
        return state["isolated"]
    if what == "connect":
        try:
            socket.create_connection(("127.0.0.1", int(str(argument))), timeout=5).close()
        except OSError as error:
            return error.strerror
        return "connected"
    return bytes(int(str(argument)))


@app.function(image=image.add_local_python_source("schemas"))
def ask_model(caller: str) -> tuple[str, str]:
    """Calls the class of this app, and returns the path of a package that was deployed with it."""
    import schemas

    return Model(name="asked").history_of.remote(caller), str(schemas.__file__)


@app.function(image=image)
def count(upto: int) -> Iterator[int]:
    yield from range(upto)


@app.function(image=image, retries=modal.Retries(max_retries=1, initial_delay=0.0))
def fail_at_first(key: str, failures: int) -> int:
    """Raises until it has been run `failures` times; returns the number of the run that did not."""
    runs = state.get(key, 0) + 1
    state[key] = runs
    if runs <= failures:
        raise RuntimeError(f"run {runs} fails")
    return runs


@app.function(image=image, timeout=1, startup_timeout=60)
def oversleep(seconds: float) -> None:
    time.sleep(seconds)


@app.function(image=image, max_containers=2)
def wait_for_release(key: str) -> str:
    """Records each run in the Dict and ends once the test has put a release there; a cancellation is recorded too."""
    state[f"{key}/runs"] = state.get(f"{key}/runs", 0) + 1
    try:
        while not state.contains(f"{key}/release"):
            time.sleep(0.05)
    except modal.exception.InputCancellation:
        state[f"{key}/cancelled"] = True
        raise
    return f"run {state[f'{key}/runs']}"


@app.function(image=image, gpu="T4")
def hold_gpu(key: str) -> str:
    """Holds a GPU until the test has put a release there."""
    return wait_for_release.local(key)


@app.function(image=image, volumes={OUTPUTS: outputs, WEIGHTS: weights.with_mount_options(read_only=True)})
def write(name: str, text: str, *, commit: bool = True) -> None:
    (OUTPUTS / name).parent.mkdir(parents=True, exist_ok=True)
    (OUTPUTS / name).write_text(text)
    if commit:
        outputs.commit()


@app.function(image=image, volumes={OUTPUTS: outputs, WEIGHTS: weights.with_mount_options(read_only=True)})
def read(name: str, *, reload: bool = True, hold_open: bool = False) -> str:
    if hold_open:
        with (OUTPUTS / name).open() as held:
            outputs.reload()
            return held.read()
    if reload:
        outputs.reload()
    return (OUTPUTS / name).read_text() if (OUTPUTS / name).exists() else "absent"


@app.function(image=image, volumes={WEIGHTS: weights.with_mount_options(read_only=True)})
def overwrite_weights() -> str:
    try:
        (WEIGHTS / "layer.bin").write_bytes(b"x")
    except OSError as error:
        return f"{error.strerror}; {(WEIGHTS / 'layer.bin').read_bytes()!r}"
    return "written"


@app.function(image=image, restrict_modal_access=True)
def reach_the_dict() -> bool:
    return state.contains("anything")


@app.function(image=image, schedule=modal.Cron("*/10 * * * *"))
def nightly() -> None:
    state["nightly"] = state.get("nightly", 0) + 1


@app.cls(
    image=image,
    gpu=["H100", "A100-80GB"],
    enable_memory_snapshot=True,
    scaledown_window=2,
    startup_timeout=60,
    experimental_options={"enable_gpu_snapshot": "False"},
)
class Model:
    """A class with a parameter and each lifecycle hook."""

    name: str = modal.parameter(default="unnamed")

    @modal.enter(snap=True)
    def load(self) -> None:
        self.history = ["load"]

    @modal.enter(snap=False)
    def move(self) -> None:
        self.history.append("move")

    @modal.method()
    def history_of(self, caller: str) -> str:
        return f"{self.name} for {caller}: {', '.join(self.history)}"

    @modal.exit()
    def leave(self) -> None:
        state[f"{self.name}/exit"] = True


@app.cls(image=image)
class Broken:
    """A class that cannot start."""

    @modal.enter()
    def load(self) -> None:
        raise FileNotFoundError("no weights")

    @modal.method()
    def run(self) -> None:
        """Never reached."""


@app.function(image=image, volumes={OUTPUTS: outputs}, max_containers=1)
@modal.concurrent(max_inputs=20)
@modal.asgi_app()
def web():
    """A web app with streams both ways, requests that wait for one another, and some that fail or answer late."""
    from fastapi import FastAPI, Request
    from fastapi.responses import Response, StreamingResponse

    api = FastAPI()
    met = asyncio.Event()

    @api.get("/where")
    def where(request: Request) -> dict[str, str]:
        return {"url": str(request.url), "header": request.headers.get("x-test", "")}

    @api.post("/length")
    async def length(request: Request) -> dict[str, int]:
        return {"length": sum([len(piece) async for piece in request.stream()])}

    @api.get("/bytes")
    def some_bytes(size: int) -> Response:
        return Response(b"\x07" * size, status_code=206, headers={"content-range": f"bytes 0-{size - 1}/{size}"})

    @api.get("/events")
    async def events() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            yield "data: first\n\n"
            await asyncio.wait_for(met.wait(), 20)
            yield "data: after the meeting\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    @api.get("/meet")
    async def meet() -> str:
        met.set()
        return "met"

    @api.get("/broken")
    async def broken() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"begun"
            await asyncio.sleep(60)

        return StreamingResponse(pieces())

    @api.get("/watch")
    async def watch(request: Request) -> str:
        while not await request.is_disconnected():
            await asyncio.sleep(0.05)
        await state.put.aio("watch/disconnected", True)
        return "gone"

    @api.get("/late")
    async def late(after_s: float) -> str:
        await asyncio.sleep(after_s)
        return "at last"

    @api.post("/spawn")
    async def spawn(number: int) -> str:
        call = await double.spawn.aio(number)
        return call.object_id

    return api


@app.function(image=image)
@modal.asgi_app(requires_proxy_auth=True)
def guarded():
    """A web app behind Modal's proxy authentication."""
    from fastapi import FastAPI

    api = FastAPI()

    @api.get("/")
    def inside() -> str:
        return "inside"

    return api


@app.local_entrypoint()
def run_broken() -> None:
    Broken().run.remote()


@app.local_entrypoint()
def main(number: int = 3) -> None:
    print(f"answer {double.remote(number)}")
