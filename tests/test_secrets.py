"""The master keys, and the keys that are derived from them for one purpose."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from pipeline.secrets import derive_keys, load_master_keys
from pipeline.settings import Settings

CURRENT = b"one master key of enough bytes"
OLDER = b"the master key that it replaced"


def test_derived_keys_equal_hkdf_expand() -> None:
    expected = HKDFExpand(algorithm=SHA256(), length=32, info=b"image-to-3d webhooks").derive(CURRENT)

    assert derive_keys([CURRENT], purpose="webhooks") == (expected,)


def test_each_purpose_and_each_master_key_gives_another_key() -> None:
    keys = {key for purpose in ("a", "b") for key in derive_keys([CURRENT, OLDER], purpose=purpose)}

    assert len(keys) == 4


def test_derived_keys_have_the_order_of_the_master_keys() -> None:
    current, older = derive_keys([CURRENT, OLDER], purpose="a")

    assert derive_keys([OLDER, CURRENT], purpose="a") == (older, current)


def test_no_master_key_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no master key"):
        derive_keys([], purpose="a")


def test_a_short_master_key_is_refused_even_as_an_older_one() -> None:
    with pytest.raises(ValueError, match="a master key has 5 bytes; at least 16 are needed"):
        derive_keys([CURRENT, b"short"], purpose="a")


def test_configured_master_keys_are_loaded_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_SECRET_KEYS", "the-current-master-key, the-older-master-key")

    assert load_master_keys(Settings(data_dir=tmp_path)) == (b"the-current-master-key", b"the-older-master-key")
    assert list(tmp_path.iterdir()) == []


def test_a_master_key_is_generated_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", secret_keys=())

    with ThreadPoolExecutor(8) as pool:
        loaded = set(pool.map(lambda _: load_master_keys(settings), range(8)))

    assert len(loaded) == 1 and len(loaded.pop()[0]) >= 32
    files = list(settings.data_dir.iterdir())
    assert [path.name for path in files] == ["secret.key"]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
