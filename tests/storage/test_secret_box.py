"""Encryption at rest of what customers entrust to the service."""

from __future__ import annotations

import pytest

from pipeline.errors import DeliveryFailed
from pipeline.storage.secret_box import SecretBox

OLD = b"the first master secret, long enough"
NEW = b"the second master secret, long enough"
SECRET = b'{"aws_secret_access_key": "hunter2\nwith a line break"}'


def test_what_is_sealed_opens_for_its_owner():
    secret_box = SecretBox([OLD])

    assert secret_box.open(secret_box.seal(SECRET, owner="key-1"), owner="key-1") == SECRET


def test_a_sealed_secret_shows_nothing_and_never_looks_the_same_twice():
    secret_box = SecretBox([OLD])

    first, second = secret_box.seal(SECRET, owner="key-1"), secret_box.seal(SECRET, owner="key-1")

    assert first != second
    assert b"hunter2" not in first
    assert b"key-1" not in first


def test_another_owner_cannot_open_it():
    secret_box = SecretBox([OLD])

    with pytest.raises(DeliveryFailed, match="belongs to another key"):
        secret_box.open(secret_box.seal(SECRET, owner="key-1"), owner="key-2")


def test_an_altered_secret_does_not_open():
    secret_box = SecretBox([OLD])
    sealed = bytearray(secret_box.seal(SECRET, owner="key-1"))
    sealed[40] ^= 1

    with pytest.raises(DeliveryFailed, match="cannot be decrypted"):
        secret_box.open(bytes(sealed), owner="key-1")


def test_after_a_rotation_old_secrets_open_and_new_ones_need_the_new_master():
    sealed_before = SecretBox([OLD]).seal(SECRET, owner="key-1")
    rotated = SecretBox([NEW, OLD])

    assert rotated.open(sealed_before, owner="key-1") == SECRET
    with pytest.raises(DeliveryFailed, match="cannot be decrypted"):
        SecretBox([OLD]).open(rotated.seal(SECRET, owner="key-1"), owner="key-1")


def test_a_resealed_secret_opens_when_the_old_master_is_gone():
    sealed_before = SecretBox([OLD]).seal(SECRET, owner="key-1")

    resealed = SecretBox([NEW, OLD]).reencrypt(sealed_before)

    assert SecretBox([NEW]).open(resealed, owner="key-1") == SECRET
    with pytest.raises(DeliveryFailed, match="cannot be decrypted"):
        SecretBox([NEW]).reencrypt(sealed_before)
