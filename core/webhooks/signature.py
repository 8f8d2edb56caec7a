"""Standard Webhooks, as OpenAI signs: HMAC-SHA256 over `id.timestamp.body` under a secret that starts with `whsec_`.
Source: https://github.com/standard-webhooks/standard-webhooks, its specification.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

MARK = "whsec_"
SECRET_BYTES = 32
HINT_CHARACTERS = 4


def new_secret() -> str:
    return MARK + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def hint(secret: str) -> str:
    """Enough to know a secret again."""
    return f"{MARK}…{secret[-HINT_CHARACTERS:]}"


def sign(secret: str, webhook_id: str, timestamp: int, payload: str) -> str:
    """`v1,<base64>`. `timestamp`: seconds since 1970."""
    key = base64.b64decode(secret.removeprefix(MARK))
    signed = f"{webhook_id}.{timestamp}.{payload}".encode()
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def headers(signers: Sequence[str], webhook_id: str, timestamp: int, payload: str) -> dict[str, str]:
    """`signers`: the secret, and the one before it while that is still good."""
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign(secret, webhook_id, timestamp, payload) for secret in signers),
    }
