"""Signed, expiring links to the files of one job."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import NotFound
from pipeline.storage.links import SAFE_NAME, LinkSigner

OLD = b"the first master key of the tests"
NEW = b"the second master key of the tests"
PREFIX = "7d3f0f0e-5a0e-4d0c-9b8e-3a4f5b6c7d8e"
NOW = 1_800_000_000.0


def test_a_token_is_valid_for_its_prefix_until_it_expires():
    signer = LinkSigner([OLD])
    token = signer.token(PREFIX, expires_at=NOW + 60.9)

    assert signer.check(token, now=NOW) == PREFIX
    assert signer.check(token, now=NOW + 59.99) == PREFIX
    with pytest.raises(NotFound, match="this link has expired"):
        signer.check(token, now=NOW + 60)


def test_a_token_needs_no_escaping_in_a_url():
    token = LinkSigner([OLD]).token(PREFIX, expires_at=NOW)

    assert set(token) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


@pytest.mark.parametrize("position", range(4))
def test_a_token_with_one_altered_part_is_refused(position: int):
    signer = LinkSigner([OLD])
    mine = signer.token(PREFIX, expires_at=NOW).split("~")
    other = LinkSigner([NEW]).token("another-prefix", expires_at=NOW + 1e6).split("~")
    mine[position] = other[position]

    with pytest.raises(NotFound, match="there is no such file"):
        signer.check("~".join(mine), now=NOW - 1)


def test_a_token_with_one_altered_character_is_refused():
    signer = LinkSigner([OLD])
    token = signer.token("p", expires_at=NOW)
    signature = token.rpartition("~")[2]

    for index, character in enumerate(token):
        altered = token[:index] + ("A" if character != "A" else "B") + token[index + 1 :]
        with pytest.raises(NotFound):
            signer.check(altered, now=NOW - 1)
    # Base64's last character has two unused bits: another spelling of the same bytes is refused too.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    respelled = signature[:-1] + alphabet[alphabet.index(signature[-1]) ^ 1]
    assert base64.urlsafe_b64decode(respelled + "=") == base64.urlsafe_b64decode(signature + "=")
    with pytest.raises(NotFound):
        signer.check(token.replace(signature, respelled), now=NOW - 1)


def test_links_of_an_older_master_key_are_valid_until_it_is_removed():
    token = LinkSigner([OLD]).token(PREFIX, expires_at=NOW)

    assert LinkSigner([NEW, OLD]).check(token, now=NOW - 1) == PREFIX
    with pytest.raises(NotFound):
        LinkSigner([NEW]).check(token, now=NOW - 1)


def test_a_token_is_the_same_in_every_process():
    assert LinkSigner([NEW, OLD]).token(PREFIX, expires_at=NOW) == LinkSigner([NEW]).token(PREFIX, expires_at=NOW)


@given(st.text())
def test_any_other_text_is_refused(text: str):
    with pytest.raises(NotFound):
        LinkSigner([OLD]).check(text, now=0.0)


@pytest.mark.parametrize("prefix", ["", ".", "..", "../x", "a/b", "a\\b", "a~b", "é", "a" * 201, "a\n"])
def test_an_unsafe_prefix_is_not_signed(prefix: str):
    assert not SAFE_NAME.fullmatch(prefix)
    with pytest.raises(ValueError, match="cannot name a folder of files"):
        LinkSigner([OLD]).token(prefix, expires_at=NOW)
