"""ModelsLab's own Python client, as it is published, against a real service: only host and key are changed.

The preview engine runs the jobs, an S3 server in a process of its own stores the files, and trimesh opens them.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.e2e.faults import KEY, Receiver, Service
from tests.fakes.images import draw_figure, encode
from tests.servers.s3 import free_port, moto_server

trimesh = pytest.importorskip("trimesh", reason="needs the extra 'local'")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client is written for pydantic 1, which pydantic 2 warns of
    from modelslab_py.core.apis.three_d import Three_D
    from modelslab_py.core.client import Client
    from modelslab_py.schemas.threed import Image23D

pytestmark = [pytest.mark.xdist_group("s3"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SMALL = {"resolution": 64, "seed": 5}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("modelslab") / "data", workers=1, restart_pause_s=0)
    service.start()
    service.wait_until_ready()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture
def client(service: Service) -> Client:
    client = Client(api_key=KEY, fetch_retry=5, fetch_timeout=1)
    client.base_url = f"{service.address}/api/"
    return client


@pytest.fixture
def three_d(client: Client) -> Three_D:
    return Three_D(client=client, enterprise=True)


@pytest.fixture(scope="module")
def image() -> str:
    return base64.b64encode(encode(draw_figure(96))).decode()


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.status == 200
        return answer.read()


def until_final(three_d: Three_D, answer: dict[str, Any]) -> dict[str, Any]:
    """Fetch by the id as text, as the client's users do, unless the submit has returned the result already."""
    return answer if answer["status"] == "success" else three_d.fetch(str(answer["id"]))


@pytest.mark.parametrize("enterprise", [True, False])
def test_a_submit_and_a_fetch_return_a_model_that_opens(client: Client, image: str, enterprise: bool) -> None:
    three_d = Three_D(client=client, enterprise=enterprise)

    answer = three_d.image_to_3d(Image23D(image=image, output_format="glb", temp="yes", track_id="o-1", **SMALL))
    final = until_final(three_d, answer)

    assert final["status"] == "success" and final["track_id"] == "o-1" and final["meta"]["seed"] == 5
    assert three_d.fetch(str(final["id"])) == final
    (url,) = final["output"]
    scene = trimesh.load_scene(trimesh.util.wrap_as_stream(download(url)), file_type="glb")
    (mesh,) = scene.geometry.values()
    assert len(mesh.faces) > 100
    assert mesh.visual.material.baseColorTexture is not None


def test_the_paths_differ_in_their_default_format(client: Client, image: str) -> None:
    endings = {}
    for enterprise in (True, False):
        three_d = Three_D(client=client, enterprise=enterprise)
        final = until_final(three_d, three_d.image_to_3d(Image23D(image=image, **SMALL)))
        endings[enterprise] = [url.rpartition(".")[2] for url in final["output"]]
    assert endings == {True: ["obj", "mtl", "png"], False: ["glb"]}


def test_a_refusal_is_raised_with_the_message_of_the_service(three_d: Three_D, client: Client, image: str) -> None:
    with pytest.raises(Exception, match=r"status code 400: .*mesh_simplify must be between 0\.9 and 0\.98, got 0\.5"):
        three_d.image_to_3d(Image23D(image=image, mesh_simplify=0.5))
    with pytest.raises(Exception, match=r"status code 404: .*There is no job with the id 12"):
        three_d.fetch("12")
    client.api_key = "another"
    with pytest.raises(Exception, match=r"status code 401: .*Invalid API key"):
        three_d.system_details()


def test_every_server_action_answers(three_d: Three_D) -> None:
    details = three_d.system_details()
    assert details["status"] == "ok" and isinstance(details["model_count"], int)
    assert isinstance(details["queue_time"], int)
    for action in (three_d.restart, three_d.update, three_d.clear_cache, three_d.clear_queue):
        answer = action()
        assert answer["status"] == "success" and isinstance(answer["message"], str) and answer["message"]


def test_a_job_ends_after_a_restart_of_the_workers_was_requested(three_d: Three_D, image: str) -> None:
    three_d.restart()
    final = until_final(three_d, three_d.image_to_3d(Image23D(image=image, output_format="stl", **SMALL)))
    assert trimesh.load_mesh(trimesh.util.wrap_as_stream(download(final["output"][0])), file_type="stl").volume > 0


def test_outputs_go_to_the_customers_bucket_once_its_details_are_saved(
    client: Client, three_d: Three_D, image: str, moto: str
) -> None:
    access = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "never-shown"}
    bucket = boto3.client("s3", endpoint_url=moto, region_name="us-east-1", **access)
    bucket.create_bucket(Bucket="shop")
    details = {
        "deploy_type": "image_to_3d",
        "public_url": f"{moto}/shop/assets/",
        "region_name": "us-east-1",
        "endpoint_url": f"{moto}/shop",
        "image_directory": "assets",
        **access,
    }

    saved = client.post(f"{client.base_url}v1/enterprise/update_s3", details)
    with Receiver() as receiver:
        request = Image23D(image=image, output_format="obj", webhook=receiver.url, **SMALL)
        final = until_final(three_d, three_d.image_to_3d(request))
        webhook = receiver.wait_for(final["id"])
    temporary = until_final(three_d, three_d.image_to_3d(Image23D(image=image, temp="yes", **SMALL)))
    forgotten = client.post(f"{client.base_url}v1/enterprise/reset_s3")

    assert saved["status"] == forgotten["status"] == "success"
    assert "never-shown" not in json.dumps([saved, final, webhook])
    assert all(url.startswith(f"{moto}/shop/assets/{final['meta']['file_prefix']}") for url in final["output"])
    assert webhook["output"] == final["output"]
    assert not any(url.startswith(moto) for url in temporary["output"])
    names = [url.rpartition("/")[2] for url in final["output"]]
    for name, url in zip(names, final["output"], strict=True):
        assert download(url) == bucket.get_object(Bucket="shop", Key=f"assets/{name}")["Body"].read()


def test_an_obj_and_what_it_refers_to_open_together(three_d: Three_D, image: str, tmp_path: Path) -> None:
    final = until_final(three_d, three_d.image_to_3d(Image23D(image=image, output_format="obj", **SMALL)))
    for url in final["output"]:
        (tmp_path / url.rpartition("/")[2]).write_bytes(download(url))

    mesh = trimesh.load_mesh(tmp_path / final["output"][0].rpartition("/")[2])

    assert mesh.visual.material.image is not None and mesh.visual.uv.shape == (len(mesh.vertices), 2)


def test_the_documented_example_body_gives_a_model(service: Service, image: str) -> None:
    example = (
        '{"key": "enterprise_api_key", "image": "https://…/subject.jpg", "ss_sampling_steps": 50, '
        '"slat_sampling_steps": 50, "output_format": "glb", "webhook": null, "track_id": null, "temp": "no"}'
    )
    body = example.replace("enterprise_api_key", KEY).replace("https://…/subject.jpg", image)
    request = urllib.request.Request(
        f"{service.address}/api/v1/enterprise/3d/image_to_3d", body.encode(), {"content-type": "application/json"}
    )

    with urllib.request.urlopen(request, timeout=60) as answer:
        final = json.load(answer)

    assert final["status"] == "success", final
    scene = trimesh.load_scene(trimesh.util.wrap_as_stream(download(final["output"][0])), file_type="glb")
    assert len(scene.geometry) == 1


def test_an_unavailable_bucket_fails_no_job_and_gets_its_files_later(
    client: Client, three_d: Three_D, image: str, tmp_path: Path
) -> None:
    port = free_port()
    access = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "never-shown"}
    bucket = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **access)
    with moto_server(tmp_path, port=port) as url:
        bucket.create_bucket(Bucket="late")
        where = {"public_url": f"{url}/late/", "region_name": "us-east-1", "endpoint_url": f"{url}/late"}
        client.post(f"{client.base_url}v1/enterprise/update_s3", {"deploy_type": "3d", **where, **access})

    while_unavailable = until_final(three_d, three_d.image_to_3d(Image23D(image=image, output_format="glb", **SMALL)))
    model = download(while_unavailable["output"][0])
    with moto_server(tmp_path, port=port):
        bucket.create_bucket(Bucket="late")
        deadline_s = time.monotonic() + 60
        while (later := three_d.fetch(str(while_unavailable["id"])))["output"] == while_unavailable["output"]:
            assert time.monotonic() < deadline_s, "the files did not reach the bucket"
            time.sleep(0.2)
        arrived = download(later["output"][0])
        client.post(f"{client.base_url}v1/enterprise/reset_s3")

    assert while_unavailable["status"] == "success" and "bucket" in while_unavailable["warning"]
    assert later["output"][0].startswith(f"{url}/late/")
    assert arrived == model
