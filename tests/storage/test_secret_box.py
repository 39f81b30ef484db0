"""Encryption at rest of customers' secrets."""

from __future__ import annotations

import pytest

from pipeline.errors import DeliveryFailed
from pipeline.storage.secret_box import SecretBox

OLD = b"the first master key of the tests"
NEW = b"the second master key of the tests"
SECRET = b'{"aws_secret_access_key": "hunter2\nwith a line break"}'


def test_the_owner_can_decrypt_what_was_encrypted() -> None:
    secret_box = SecretBox([OLD])

    assert secret_box.decrypt(secret_box.encrypt(SECRET, owner="key-1"), owner="key-1") == SECRET


def test_encryption_hides_the_content_and_never_gives_the_same_bytes_twice() -> None:
    secret_box = SecretBox([OLD])

    first, second = secret_box.encrypt(SECRET, owner="key-1"), secret_box.encrypt(SECRET, owner="key-1")

    assert first != second
    assert b"hunter2" not in first
    assert b"key-1" not in first


def test_another_owner_cannot_decrypt_it() -> None:
    secret_box = SecretBox([OLD])

    with pytest.raises(DeliveryFailed, match="belongs to another key"):
        secret_box.decrypt(secret_box.encrypt(SECRET, owner="key-1"), owner="key-2")


def test_altered_bytes_cannot_be_decrypted() -> None:
    secret_box = SecretBox([OLD])
    encrypted = bytearray(secret_box.encrypt(SECRET, owner="key-1"))
    encrypted[40] ^= 1

    with pytest.raises(DeliveryFailed, match="cannot be decrypted"):
        secret_box.decrypt(bytes(encrypted), owner="key-1")


def test_with_two_master_keys_both_decrypt_and_the_current_one_encrypts() -> None:
    old = SecretBox([OLD]).encrypt(SECRET, owner="key-1")
    rotated = SecretBox([NEW, OLD])

    assert rotated.decrypt(old, owner="key-1") == SECRET
    with pytest.raises(DeliveryFailed, match="cannot be decrypted"):
        SecretBox([OLD]).decrypt(rotated.encrypt(SECRET, owner="key-1"), owner="key-1")


def test_after_reencryption_the_old_master_key_is_not_needed() -> None:
    old = SecretBox([OLD]).encrypt(SECRET, owner="key-1")

    renewed = SecretBox([NEW, OLD]).reencrypt(old)

    assert SecretBox([NEW]).decrypt(renewed, owner="key-1") == SECRET
    with pytest.raises(DeliveryFailed, match="cannot be decrypted"):
        SecretBox([NEW]).reencrypt(old)


def test_only_what_the_current_master_key_encrypted_is_current() -> None:
    rotated = SecretBox([NEW, OLD])

    assert rotated.is_current(rotated.encrypt(SECRET, owner="key-1"))
    assert not rotated.is_current(SecretBox([OLD]).encrypt(SECRET, owner="key-1"))
