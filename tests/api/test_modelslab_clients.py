"""What ModelsLab's five clients send, field by field: every path is served, or answered with what is offered.

Sources, with the version that was read: modelslab-py 0.2.3 (PyPI), and on GitHub modelslab-js 1.0.1@d75552459a,
modelslab-go@3b2fe7acb3, modelslab-php@4da69b8505 and modelslab-dart@63bb1f6f0b.
`tests/e2e/test_modelslab_client.py` runs the Python client itself; the JavaScript client is not on npm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.api.conftest import IMAGE, Deployment

SHAPE = {
    "output_format": "glb",
    "render": False,
    "seed": 5,
    "ss_guidance_strength": 7.5,
    "slat_guidance_strength": 3.0,
    "slat_sampling_steps": 12,
    "mesh_simplify": 0.95,
    "chunk_size": 8192,
}
"""Fields that the clients share, besides PHP's."""
NOTIFIED = {"webhook": None, "track_id": "o-1"}
PROMPTED = {"prompt": "a robot", "negative_prompt": "blurry", "guidance_scale": 7.5, "num_inference_steps": 20}
TEXT_ONLY = {"resolution": "256", "foreground_ratio": 0.85, "remove_bg": True, **PROMPTED}


@dataclass(frozen=True)
class Sdk:
    """The bodies of one client.

    Attributes:
        image: of image_to_3d.
        text: of text_to_3d.
        ignored: the fields of `image` that have no effect here.
        key_in: where it puts the key.
    """

    image: dict[str, Any]
    text: dict[str, Any]
    ignored: tuple[str, ...] = ()
    key_in: str = "body"

    def post(self, deployment: Deployment, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"prefer": "wait=0"}
        sent = dict(body or {})
        if self.key_in == "body":
            sent["key"] = deployment.key
        else:
            headers["authorization"] = f"Bearer {deployment.key}"
        return deployment.client.post(path, json=sent, headers=headers)


PHP_SHAPE = {**PROMPTED, "model_id": "threed", "width": 512, "height": 512, "seed": 5, "track_id": "o-1"}
CLIENTS = {
    "python": Sdk(
        {"image": IMAGE, "resolution": 256, "multi_image": False, "temp": "yes", **SHAPE, "track_id": "o-1"},
        {**TEXT_ONLY, **SHAPE, "temp": "no"},
    ),
    # `Authorization: Bearer`, and the key once more in a field that its types demand; resolution may be a text.
    "javascript": Sdk(
        {
            "api_key": "i3d_x",
            "image": IMAGE,
            "resolution": "256",
            "multi_image": False,
            "temp": "yes",
            **SHAPE,
            **NOTIFIED,
        },
        {"api_key": "i3d_x", **TEXT_ONLY, **SHAPE, "temp": "no"},
        key_in="header",
    ),
    # `temp` is a boolean.
    "go": Sdk(
        {"image": IMAGE, "resolution": 256, "multi_image": False, "temp": True, **SHAPE, "track_id": "o-1"},
        {**TEXT_ONLY, **SHAPE, "temp": False},
    ),
    # Fields of an earlier version of the API.
    "php": Sdk(
        {"init_image": IMAGE, **PHP_SHAPE},
        PHP_SHAPE,
        ignored=("guidance_scale", "height", "model_id", "negative_prompt", "num_inference_steps", "prompt", "width"),
    ),
    # Every field is sent, as null where it is not given.
    "dart": Sdk(
        {"image": IMAGE, "resolution": None, "multi_image": None, "temp": None, **dict.fromkeys(SHAPE), **NOTIFIED},
        {**TEXT_ONLY, **dict.fromkeys(SHAPE), **NOTIFIED, "temp": None},
    ),
}
PREFIXES = ("/api/v6/3d/", "/api/v1/enterprise/3d/")
each_client = pytest.mark.parametrize("sdk", CLIENTS.values(), ids=CLIENTS.keys())


@each_client
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_submit_and_a_fetch_with_a_clients_fields_are_accepted(sdk: Sdk, prefix: str, deployment: Deployment) -> None:
    submitted = sdk.post(deployment, f"{prefix}image_to_3d", sdk.image)
    job = submitted.json()
    fetched = sdk.post(deployment, f"{prefix}fetch/{job['id']}")

    assert (submitted.status_code, fetched.status_code) == (200, 200)
    assert job["status"] == fetched.json()["status"] == "processing"
    assert fetched.json()["track_id"] == "o-1"
    given = {name: value for name, value in sdk.image.items() if value is not None and name in SHAPE}
    assert {name: job["meta"][name] for name in given} == given


@each_client
def test_fields_without_an_effect_are_named(sdk: Sdk, deployment: Deployment) -> None:
    warning = sdk.post(deployment, "/api/v6/3d/estimate", sdk.image).json()["warning"]

    named = warning.partition("no such field: ")[2].partition(".")[0]
    assert tuple(named.split(", ") if named else ()) == sdk.ignored


@each_client
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_text_with_a_clients_fields_is_accepted(sdk: Sdk, prefix: str, deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="preview", engines=("trellis-text",))

    submitted = sdk.post(deployment, f"{prefix}text_to_3d", sdk.text)

    job = submitted.json()
    assert (submitted.status_code, job["status"]) == (200, "processing")
    assert sdk.post(deployment, f"{prefix}fetch/{job['id']}").json()["id"] == job["id"]
    sent = {name: value for name, value in sdk.text.items() if value is not None}
    numbers = {"resolution": 256} if "resolution" in sent else {}
    for name in ("prompt", "negative_prompt", "seed", "mesh_simplify", "chunk_size", "slat_sampling_steps"):
        if name in sent:
            assert job["meta"][name] == sent[name], name
    assert numbers.items() <= job["meta"].items()
    assert job["meta"]["ss_guidance_strength"] == sent.get("ss_guidance_strength", sent["guidance_scale"])
    assert job["meta"]["ss_sampling_steps"] == sent["num_inference_steps"]


@each_client
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_deployment_without_an_engine_of_texts_names_one(sdk: Sdk, prefix: str, deployment: Deployment) -> None:
    answer = sdk.post(deployment, f"{prefix}text_to_3d", sdk.text)

    assert (answer.status_code, answer.json()["error_code"]) == (400, "invalid_request")
    assert answer.json()["message"].startswith("engine preview takes no text; no engine of this deployment takes one")


@each_client
def test_the_server_actions_answer(sdk: Sdk, deployment: Deployment) -> None:
    details = sdk.post(deployment, "/api/v1/enterprise/3d/system_details").json()
    actions = ("restart_server", "update", "clear_cache", "clear_queue")
    answers = [sdk.post(deployment, f"/api/v1/enterprise/3d/{action}").json() for action in actions]

    assert details["status"] == "ok"
    assert [answer["status"] for answer in answers] == ["success"] * 4
