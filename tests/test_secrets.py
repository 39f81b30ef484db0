"""Deriving keys for a purpose from the master secrets."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from pipeline.secrets import derive_keys

MASTER = b"one master secret of enough bytes"
OLDER = b"the master secret that it replaced"


def test_derived_keys_equal_hkdf_expand():
    expected = HKDFExpand(algorithm=SHA256(), length=32, info=b"image-to-3d webhooks").derive(MASTER)

    assert derive_keys([MASTER], purpose="webhooks") == (expected,)


def test_each_purpose_and_each_master_has_a_key_of_its_own():
    keys = {key for purpose in ("a", "b") for key in derive_keys([MASTER, OLDER], purpose=purpose)}

    assert len(keys) == 4


def test_keys_keep_the_order_of_their_masters():
    current, older = derive_keys([MASTER, OLDER], purpose="a")

    assert derive_keys([OLDER, MASTER], purpose="a") == (older, current)


def test_no_master_is_refused():
    with pytest.raises(ValueError, match="there is no master secret"):
        derive_keys([], purpose="a")


def test_a_short_master_is_refused_even_as_an_older_one():
    with pytest.raises(ValueError, match="a master secret has 5 bytes; at least 16 are needed"):
        derive_keys([MASTER, b"short"], purpose="a")
