"""Encryption at rest of what customers entrust to the service."""

from __future__ import annotations

import pytest

from pipeline.errors import DeliveryFailed
from pipeline.storage.vault import Vault

OLD = b"the first master secret, long enough"
NEW = b"the second master secret, long enough"
SECRET = b'{"aws_secret_access_key": "hunter2\nwith a line break"}'


def test_what_is_sealed_opens_for_its_owner():
    vault = Vault([OLD])

    assert vault.open(vault.seal(SECRET, owner="key-1"), owner="key-1") == SECRET


def test_a_sealed_secret_shows_nothing_and_never_looks_the_same_twice():
    vault = Vault([OLD])

    first, second = vault.seal(SECRET, owner="key-1"), vault.seal(SECRET, owner="key-1")

    assert first != second
    assert b"hunter2" not in first
    assert b"key-1" not in first


def test_another_owner_cannot_open_it():
    vault = Vault([OLD])

    with pytest.raises(DeliveryFailed, match="belongs to another key"):
        vault.open(vault.seal(SECRET, owner="key-1"), owner="key-2")


def test_an_altered_secret_does_not_open():
    vault = Vault([OLD])
    sealed = bytearray(vault.seal(SECRET, owner="key-1"))
    sealed[40] ^= 1

    with pytest.raises(DeliveryFailed, match="cannot be decrypted"):
        vault.open(bytes(sealed), owner="key-1")


def test_after_a_rotation_old_secrets_open_and_new_ones_need_the_new_master():
    sealed_before = Vault([OLD]).seal(SECRET, owner="key-1")
    rotated = Vault([NEW, OLD])

    assert rotated.open(sealed_before, owner="key-1") == SECRET
    with pytest.raises(DeliveryFailed, match="cannot be decrypted"):
        Vault([OLD]).open(rotated.seal(SECRET, owner="key-1"), owner="key-1")


def test_a_resealed_secret_opens_when_the_old_master_is_gone():
    sealed_before = Vault([OLD]).seal(SECRET, owner="key-1")

    resealed = Vault([NEW, OLD]).reseal(sealed_before)

    assert Vault([NEW]).open(resealed, owner="key-1") == SECRET
    with pytest.raises(DeliveryFailed, match="cannot be decrypted"):
        Vault([NEW]).reseal(sealed_before)
