import time

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from core.webhooks import signature

PAYLOAD = '{"type": "batch.completed"}'


@pytest.fixture
def official() -> OpenAI:
    return OpenAI(api_key="unused")


def test_openais_client_knows_the_signature(official: OpenAI) -> None:
    # Given
    secret = signature.new_secret()
    # When
    headers = signature.headers([secret], "wh_1", int(time.time()), PAYLOAD)
    # Then
    official.webhooks.verify_signature(PAYLOAD, headers, secret=secret)


def test_two_secrets_sign_while_one_replaces_the_other(official: OpenAI) -> None:
    # Given
    new, old = signature.new_secret(), signature.new_secret()
    # When
    headers = signature.headers([new, old], "wh_1", int(time.time()), PAYLOAD)
    # Then
    for secret in (new, old):
        official.webhooks.verify_signature(PAYLOAD, headers, secret=secret)


@pytest.mark.parametrize("changed", ["payload", "secret", "id"])
def test_nothing_can_be_changed_under_a_signature(official: OpenAI, changed: str) -> None:
    # Given
    secret = signature.new_secret()
    headers = signature.headers([secret], "wh_1", int(time.time()), PAYLOAD)
    # When
    if changed == "id":
        headers["webhook-id"] = "wh_2"
    payload = PAYLOAD + " " if changed == "payload" else PAYLOAD
    key = signature.new_secret() if changed == "secret" else secret
    # Then
    with pytest.raises(InvalidWebhookSignatureError):
        official.webhooks.verify_signature(payload, headers, secret=key)


def test_a_hint_gives_little_away() -> None:
    secret = signature.new_secret()
    assert len(signature.hint(secret)) < 12
    assert secret.endswith(signature.hint(secret)[-4:])
