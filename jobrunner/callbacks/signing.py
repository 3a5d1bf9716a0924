"""How a receiver knows a callback again, and who it is from: the headers of the Standard Webhooks."""

from collections.abc import Sequence
from datetime import datetime

from standardwebhooks.webhooks import Webhook

from jobrunner.config_values import Secret
from jobrunner.domain.callback import ID_HEADER


def webhook_headers(secrets: Sequence[Secret], message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Return the headers of one attempt.

    Args:
        secrets: each of them signs, so that a receiver may know either the old or the new one; none: no signature.
        message_id: the same for all attempts.
        at: when it is sent; in UTC.
        body: UTF-8.
    """
    headers = {ID_HEADER: message_id, "webhook-timestamp": str(int(at.timestamp()))}
    if secrets:
        signatures = [Webhook(secret.text).sign(message_id, at, body.decode()) for secret in secrets]
        headers["webhook-signature"] = " ".join(signatures)
    return headers
