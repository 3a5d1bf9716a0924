"""How a receiver knows a callback again, and who it is from: the headers of the Standard Webhooks."""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import IO

from jobrunner.config_values import SECRET_PREFIX, Secret
from jobrunner.domain.callback import ID_HEADER

_PIECE = 1 << 16


def webhook_headers(secrets: Sequence[Secret], message_id: str, at: datetime, body: IO[bytes]) -> dict[str, str]:
    """Return the headers of one attempt.

    Args:
        secrets: each of them signs, so that a receiver may know either the old or the new one; none: no signature.
        message_id: the same for all attempts.
        at: when it is sent; in UTC.
        body: is read from its begin.
    """
    headers = {ID_HEADER: message_id, "webhook-timestamp": str(int(at.timestamp()))}
    if secrets:
        begin = f"{message_id}.{headers['webhook-timestamp']}.".encode()
        headers["webhook-signature"] = " ".join(_sign(secret, begin, body) for secret in secrets)
    return headers


def _sign(secret: Secret, begin: bytes, body: IO[bytes]) -> str:
    """Sign piece by piece: the library of the Standard Webhooks wants all of it in memory, several times."""
    mac = hmac.new(base64.b64decode(secret.text.removeprefix(SECRET_PREFIX)), begin, hashlib.sha256)
    body.seek(0)
    while piece := body.read(_PIECE):
        mac.update(piece)
    return f"v1,{base64.b64encode(mac.digest()).decode()}"
