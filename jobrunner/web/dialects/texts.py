"""Answers in plain text, as most originals give them when something is not done."""

from collections.abc import Callable, Mapping

from flask import Response

from jobrunner.web.dialects.dialect import Refusal, Why, answer

PLAIN = "text/plain; charset=utf-8"

NOT_AUTHORIZED = "Not Authorized"


def http_error(text: str, status: int, refusal: Refusal | None = None) -> Response:
    """Answer as Go's ``http.Error`` does: the text and a line feed."""
    return answer(f"{text}\n", status, content_type=PLAIN, refusal=refusal)


def in_texts(forms: Mapping[Why, Callable[[Refusal], Response]]) -> Callable[[Refusal], Response]:
    """Make what refuses in plain text, but for these reasons, which a dialect has a form of its own for."""

    def refuse(refusal: Refusal) -> Response:
        if refusal.why in forms:
            return forms[refusal.why](refusal)
        if refusal.why is Why.UNAUTHORIZED:
            return http_error(NOT_AUTHORIZED, 401)
        return http_error(refusal.text, refusal.status, refusal)

    return refuse
