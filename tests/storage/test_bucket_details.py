"""Which bucket a customer's details name, how it is addressed, and the URLs that its files get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.errors import InvalidRequest
from pipeline.storage.base import OutputFile
from pipeline.storage.bucket_details import bucket_of_details
from pipeline.storage.s3 import S3Storage
from pipeline.storage.s3_client import Bucket, make_client
from schemas.s3 import parse_s3_details
from tests.servers.s3 import ProxyHandler, fault_proxy, moto_server

pytestmark = pytest.mark.xdist_group("s3")

SECRETS = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "hunter2-hunter2"}


def bucket_of(**details: str) -> Bucket:
    return bucket_of_details(parse_s3_details({**SECRETS, **details}))


SUPABASE = "https://ref.supabase.co/storage/v1/s3"
R2 = "0123456789abcdef0123456789abcdef"
CASES: dict[str, tuple[dict[str, str], tuple[str | None, str, bool, str, str]]] = {
    # details: endpoint, name, whether in the path, directory, URL of the file a.glb
    "a service below a path": (
        {"endpoint_url": SUPABASE, "bucket": "models"},
        (SUPABASE, "models", True, "", f"{SUPABASE}/models/a.glb"),
    ),
    "a known path, the bucket behind it": (
        {"endpoint_url": f"{SUPABASE}/models/", "image_directory": "3d"},
        (SUPABASE, "models", True, "3d", f"{SUPABASE}/models/3d/a.glb"),
    ),
    "a known path, the bucket in the directory": (
        {"endpoint_url": SUPABASE, "image_directory": "models/3d"},
        (SUPABASE, "models", True, "3d", f"{SUPABASE}/models/3d/a.glb"),
    ),
    "a path in front of the bucket": (
        {"endpoint_url": "https://host:9000/minio/models", "bucket": "models"},
        ("https://host:9000/minio", "models", True, "", "https://host:9000/minio/models/a.glb"),
    ),
    "a path behind the bucket": (
        {"endpoint_url": "https://host/models/in/here", "image_directory": "3d"},
        ("https://host", "models", True, "in/here/3d", "https://host/models/in/here/3d/a.glb"),
    ),
    "a path with escapes": (
        {"endpoint_url": "https://host/m%C3%BCll%20er", "bucket": "models"},
        ("https://host/m%C3%BCll%20er", "models", True, "", "https://host/m%C3%BCll%20er/models/a.glb"),
    ),
    "an IPv6 host with a port": (
        {"endpoint_url": "http://[2606:4700::1111]:9000/", "bucket": "models"},
        ("http://[2606:4700::1111]:9000", "models", True, "", "http://[2606:4700::1111]:9000/models/a.glb"),
    ),
    "Alibaba, the bucket in the host": (
        {"endpoint_url": "https://models.oss-cn-hangzhou.aliyuncs.com"},
        (
            "https://oss-cn-hangzhou.aliyuncs.com",
            "models",
            False,
            "",
            "https://models.oss-cn-hangzhou.aliyuncs.com/a.glb",
        ),
    ),
    "Alibaba, the bucket in the host and named": (
        {"endpoint_url": "https://models.oss-cn-hangzhou.aliyuncs.com", "bucket": "models"},
        (
            "https://oss-cn-hangzhou.aliyuncs.com",
            "models",
            False,
            "",
            "https://models.oss-cn-hangzhou.aliyuncs.com/a.glb",
        ),
    ),
    "Alibaba, the bucket named": (
        {"endpoint_url": "https://s3.oss-cn-hangzhou.aliyuncs.com", "bucket": "models"},
        (
            "https://s3.oss-cn-hangzhou.aliyuncs.com",
            "models",
            False,
            "",
            "https://models.s3.oss-cn-hangzhou.aliyuncs.com/a.glb",
        ),
    ),
    "Tencent": (
        {"endpoint_url": "https://cos.ap-beijing.myqcloud.com", "image_directory": "models-125/3d"},
        (
            "https://cos.ap-beijing.myqcloud.com",
            "models-125",
            False,
            "3d",
            "https://models-125.cos.ap-beijing.myqcloud.com/3d/a.glb",
        ),
    ),
    "Volcengine": (
        {"endpoint_url": "https://tos-s3-cn-beijing.volces.com", "bucket": "models"},
        (
            "https://tos-s3-cn-beijing.volces.com",
            "models",
            False,
            "",
            "https://models.tos-s3-cn-beijing.volces.com/a.glb",
        ),
    ),
    "an unknown service, virtual by option": (
        {"endpoint_url": "https://store.example.com:8443", "bucket": "models", "addressing_style": "virtual"},
        ("https://store.example.com:8443", "models", False, "", "https://models.store.example.com:8443/a.glb"),
    ),
    "an unknown service, virtual by option and by host": (
        {"endpoint_url": "https://MODELS.store.example.com:8443", "bucket": "models", "addressing_style": "virtual"},
        ("https://store.example.com:8443", "models", False, "", "https://models.store.example.com:8443/a.glb"),
    ),
    "a known service, path by option": (
        {"endpoint_url": "https://models.fra1.digitaloceanspaces.com", "addressing_style": "path"},
        ("https://fra1.digitaloceanspaces.com", "models", True, "", "https://fra1.digitaloceanspaces.com/models/a.glb"),
    ),
    "AWS, path by option": (
        {"endpoint_url": "https://s3.eu-west-1.amazonaws.com/models", "addressing_style": "path"},
        (None, "models", True, "", "https://s3.eu-west-1.amazonaws.com/models/a.glb"),
    ),
    "AWS, a bucket with dots": (
        {"endpoint_url": "https://files.example.com.s3.eu-central-1.amazonaws.com"},
        (None, "files.example.com", False, "", "https://s3.eu-central-1.amazonaws.com/files.example.com/a.glb"),
    ),
    "AWS, a bucket whose name begins like the service": (
        {"endpoint_url": "https://s3-models.s3.amazonaws.com"},
        (None, "s3-models", False, "", "https://s3-models.s3.us-east-1.amazonaws.com/a.glb"),
    ),
    "AWS China": (
        {"bucket": "models", "region_name": "cn-north-1"},
        (None, "models", False, "", "https://models.s3.cn-north-1.amazonaws.com.cn/a.glb"),
    ),
    "AWS China by the endpoint": (
        {"endpoint_url": "https://models.s3.cn-northwest-1.amazonaws.com.cn"},
        (None, "models", False, "", "https://models.s3.cn-northwest-1.amazonaws.com.cn/a.glb"),
    ),
    "AWS dual stack": (
        {"endpoint_url": "https://models.s3.dualstack.eu-west-1.amazonaws.com"},
        (
            "https://s3.dualstack.eu-west-1.amazonaws.com",
            "models",
            False,
            "",
            "https://models.s3.dualstack.eu-west-1.amazonaws.com/a.glb",
        ),
    ),
    "R2 of a jurisdiction": (
        {"endpoint_url": f"https://{R2}.eu.r2.cloudflarestorage.com", "image_directory": "models/3d"},
        (
            f"https://{R2}.eu.r2.cloudflarestorage.com",
            "models",
            True,
            "3d",
            f"https://{R2}.eu.r2.cloudflarestorage.com/models/3d/a.glb",
        ),
    ),
    "R2, the bucket in the host of a jurisdiction": (
        {"endpoint_url": f"https://models.{R2}.fedramp.r2.cloudflarestorage.com"},
        (
            f"https://{R2}.fedramp.r2.cloudflarestorage.com",
            "models",
            False,
            "",
            f"https://models.{R2}.fedramp.r2.cloudflarestorage.com/a.glb",
        ),
    ),
    "Wasabi's first endpoint": (
        {"endpoint_url": "https://models.s3.wasabisys.com"},
        ("https://s3.wasabisys.com", "models", False, "", "https://models.s3.wasabisys.com/a.glb"),
    ),
    "a directory that a URL must escape": (
        {"endpoint_url": "http://host/models", "image_directory": "Kunden/Müller & Söhne/100 %?#"},
        (
            "http://host",
            "models",
            True,
            "Kunden/Müller & Söhne/100 %?#",
            "http://host/models/Kunden/M%C3%BCller%20%26%20S%C3%B6hne/100%20%25%3F%23/a.glb",
        ),
    ),
    "a public address that holds the directory": (
        {
            "endpoint_url": "http://host/models",
            "image_directory": "Müller & Söhne",
            "public_url": "https://cdn.example.com/M%C3%BCller%20&%20S%C3%B6hne/",
        },
        (
            "http://host",
            "models",
            True,
            "Müller & Söhne",
            "https://cdn.example.com/M%C3%BCller%20&%20S%C3%B6hne/a.glb",
        ),
    ),
    "a public address with a port, a path and a query": (
        {
            "endpoint_url": "http://host/models",
            "image_directory": "3d",
            "public_url": "https://[2606:4700::1]:8443/Öffentlich/?token=a%2Fb",
        },
        (
            "http://host",
            "models",
            True,
            "3d",
            "https://[2606:4700::1]:8443/%C3%96ffentlich/3d/a.glb?token=a%2Fb",
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_address_is_taken_apart_and_put_together_whole(case: str) -> None:
    details, expected = CASES[case]
    bucket = bucket_of(**details)

    found = (bucket.endpoint_url, bucket.name, bucket.is_path_style, bucket.directory, bucket.url_of("a.glb"))
    assert found == expected


@pytest.mark.parametrize("names_bucket", [True, False])
@pytest.mark.parametrize(
    "host",
    [
        "storage.yandexcloud.net",
        "gateway.storjshare.io",
        "sos-ch-gva-2.exo.io",
        "obs.eu-de.otc.t-systems.com",
        "obs.cn-north-4.myhuaweicloud.com",
        "namespace.compat.objectstorage.eu-frankfurt-1.oraclecloud.com",
        "vhcompat.objectstorage.eu-frankfurt-1.oci.customer-oci.com",
        "s3.eu-de.cloud-object-storage.appdomain.cloud",
        "s3-eu-central-1.ionoscloud.com",
    ],
)
def test_a_bucket_in_the_host_of_a_known_service_is_there_once(host: str, names_bucket: bool) -> None:
    bucket = bucket_of(endpoint_url=f"https://models.{host}", **({"bucket": "models"} if names_bucket else {}))

    assert (bucket.endpoint_url, bucket.name, bucket.is_path_style) == (f"https://{host}", "models", False)
    assert bucket.url_of("a.glb") == f"https://models.{host}/a.glb"


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (
            {"bucket": "b", "image_directory": "../../other/"},
            "image_directory must not contain the segments '.' and '..'",
        ),
        ({"bucket": "b", "image_directory": "a/./b"}, "image_directory must not contain"),
        ({"endpoint_url": "https://host/a/../b"}, "endpoint_url must not contain the segments"),
        ({"endpoint_url": "https://host/%2e%2E/b"}, "endpoint_url must not contain the segments"),
        ({"endpoint_url": "https://host/b?x=1"}, "endpoint_url must not have a query"),
        (
            {"endpoint_url": "http://10.0.0.1:9000", "bucket": "b", "addressing_style": "virtual"},
            "addressing_style must be path where endpoint_url holds an IP address",
        ),
        ({"endpoint_url": "https://host"}, "no bucket is named"),
        (
            {"endpoint_url": "https://models-125.cos.ap-guangzhou.myqcloud.com", "bucket": "models"},
            "bucket is another one than 'models-125', whose address endpoint_url is",
        ),
        ({"bucket": "arn:aws:s3:us-east-1:123456789012:accesspoint/models"}, "public_url is required"),
        (
            {"bucket": "b", "addressing_style": "host"},
            "addressing_style must be one of auto, path, virtual, got 'host'",
        ),
    ],
)
def test_details_that_lead_elsewhere_are_refused(details: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        bucket_of(**details)

    assert words in str(refused.value)


def test_a_bucket_saved_by_an_earlier_version_gets_escaped_urls() -> None:
    saved = Bucket("http://host", "b", "us-east-1", True, "a ü", "http://host/b/a ü", "", "")

    assert saved.url_of("a.glb") == "http://host/b/a%20%C3%BC/a.glb"


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        yield url


def test_a_service_below_a_path_gets_the_files_and_shows_them(moto: str, tmp_path: Path) -> None:
    def below_a_path(handler: ProxyHandler, body: bytes) -> bool:
        assert handler.path.startswith("/storage/v1/s3/")
        handler.path = handler.path.removeprefix("/storage/v1/s3")
        handler.forward(body)
        return True

    (tmp_path / "a.glb").write_bytes(b"glTF")
    with fault_proxy(moto) as proxy, httpx.Client() as http:
        proxy.add(lambda seen: True, below_a_path)
        bucket = bucket_of(endpoint_url=f"{proxy.url}/storage/v1/s3", bucket="models", image_directory="Müller & Söhne")
        make_client(bucket, http).create_bucket(Bucket="models")

        storage = S3Storage(bucket, http=http)
        storage.probe()
        (artifact,) = storage.store(
            [OutputFile(tmp_path / "a.glb", kind="model", content_type="model/gltf-binary")], file_prefix="a"
        )

        assert http.get(artifact.url).content == b"glTF"
        assert storage.check_public_url([artifact]) is None
