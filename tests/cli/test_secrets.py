"""`image-to-3d secrets rotate`, on a real data folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from pipeline.cli import secrets
from pipeline.deployment import open_store
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import KeyLimits
from pipeline.settings import Settings
from pipeline.storage.encrypted_bucket import decrypt_bucket, encrypt_bucket
from pipeline.storage.s3_client import Bucket
from pipeline.storage.secret_box import SecretBox

OLD, NEW, UNRELATED = "the-old-master-key", "the-new-master-key", "an-unrelated-master-key"
BUCKET = Bucket(
    endpoint_url="https://s3.example.com",
    name="models",
    region="us-east-1",
    is_path_style=True,
    directory="",
    public_url="https://models.example.com",
    access_key_id="id",
    secret_access_key="secret",
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    return tmp_path / "data"


@pytest.fixture
def api_key_id(data: Path) -> str:
    """A key whose bucket is encrypted with the old master key."""
    data.mkdir()
    store = open_store(Settings(data_dir=data))
    key = store.add_key(make_key("shop", limits=KeyLimits())[1])
    store.save_s3(key.id, encrypt_bucket(BUCKET, owner=key.id, secret_box=SecretBox([OLD.encode()])))
    store.close()
    return key.id


def rotate(data: Path, *master_keys: str) -> Result:
    """Run the command with these master keys, the current one first."""
    app = typer.Typer()
    secrets.register(app)
    environment = {"IMAGE_TO_3D_SECRET_KEYS": ",".join(master_keys)}
    return CliRunner().invoke(app, ["secrets", "rotate", "--data", str(data)], env=environment)


def saved(data: Path, api_key_id: str) -> bytes | None:
    store = open_store(Settings(data_dir=data))
    encrypted = store.s3_of(api_key_id)
    store.close()
    return encrypted


def test_after_a_rotation_the_new_master_key_alone_decrypts_the_bucket(data: Path, api_key_id: str) -> None:
    result = rotate(data, NEW, OLD)

    assert (result.exit_code, result.stdout) == (0, "1 saved buckets re-encrypted, 0 already current\n")
    encrypted = saved(data, api_key_id)
    assert encrypted is not None
    assert decrypt_bucket(encrypted, owner=api_key_id, secret_box=SecretBox([NEW.encode()])) == BUCKET


def test_a_second_rotation_changes_nothing(data: Path, api_key_id: str) -> None:
    rotate(data, NEW, OLD)
    before = saved(data, api_key_id)

    result = rotate(data, NEW)

    assert (result.exit_code, result.stdout) == (0, "0 saved buckets re-encrypted, 1 already current\n")
    assert saved(data, api_key_id) == before


def test_a_bucket_that_cannot_be_decrypted_is_refused_in_one_sentence(data: Path, api_key_id: str) -> None:
    before = saved(data, api_key_id)

    result = rotate(data, UNRELATED)

    assert (result.exit_code, result.stdout) == (1, "0 saved buckets re-encrypted, 0 already current\n")
    assert result.stderr == (
        "The saved bucket of key 'shop' cannot be decrypted with this deployment's master keys; save it again.\n"
    )
    assert saved(data, api_key_id) == before


def test_the_help_says_what_else_a_removed_master_key_invalidates(data: Path) -> None:
    app = typer.Typer()
    secrets.register(app)

    said = " ".join(CliRunner().invoke(app, ["secrets", "rotate", "--help"]).stdout.split())

    assert "links to files" in said
    assert "webhook secret" in said
