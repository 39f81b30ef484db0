"""Webhook signatures, checked with the verifier that receivers use."""

from __future__ import annotations

import base64
import hmac
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from pipeline.jobs.model import ApiKey
from pipeline.secrets import derive_keys
from pipeline.webhooks.signing import WebhookSigner

OLD = b"the first master key, long enough"
NEW = b"the second master key, long enough"
BODY = '{"status": "success", "track_id": "ä€😀"}'.encode()


def key(api_key_id: str) -> ApiKey:
    return ApiKey(id=api_key_id, name="shop", sha256="", shown="", created_at=0.0)


def signed(signer: WebhookSigner) -> dict[str, str]:
    return signer.headers(key("key-1"), webhook_id="msg_1", timestamp=time.time(), body=BODY)


def test_a_signature_verifies_with_the_secret_of_its_key():
    signer = WebhookSigner([OLD])

    verified = Webhook(signer.secret_of(key("key-1"))).verify(BODY, signed(signer))

    assert verified == {"status": "success", "track_id": "ä€😀"}


@pytest.mark.parametrize("what", ["body", "id", "timestamp", "secret"])
def test_a_signature_covers_body_id_and_time_and_belongs_to_one_key(what: str):
    signer = WebhookSigner([OLD])
    headers = signed(signer)
    body = BODY + b" " if what == "body" else BODY
    if what == "id":
        headers["webhook-id"] = "msg_2"
    if what == "timestamp":
        headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) - 1)

    with pytest.raises(WebhookVerificationError, match="No matching signature found"):
        Webhook(signer.secret_of(key("key-2" if what == "secret" else "key-1"))).verify(body, headers)


def test_while_the_master_key_is_replaced_old_and_new_secrets_both_verify():
    old, both, new = WebhookSigner([OLD]), WebhookSigner([NEW, OLD]), WebhookSigner([NEW])
    headers = signed(both)

    Webhook(old.secret_of(key("key-1"))).verify(BODY, headers)
    Webhook(new.secret_of(key("key-1"))).verify(BODY, headers)
    assert both.secret_of(key("key-1")) == new.secret_of(key("key-1"))


def test_the_three_headers_carry_the_id_and_whole_seconds():
    headers = WebhookSigner([OLD]).headers(key("k"), webhook_id="msg_9", timestamp=1_700_000_000.9, body=b"{}")

    assert headers["webhook-id"] == "msg_9"
    assert headers["webhook-timestamp"] == "1700000000"
    assert headers["webhook-signature"].startswith("v1,")


def test_the_first_secret_is_the_one_that_was_given_before_secrets_could_be_rotated():
    derived = derive_keys([OLD], purpose="webhooks")[0]
    expected = "whsec_" + base64.b64encode(hmac.digest(derived, b"key-1", "sha256")).decode()

    assert WebhookSigner([OLD]).secret_of(key("key-1")) == expected
