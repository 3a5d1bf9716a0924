"""Untrusted input becomes typed values, or a problem that says what to do."""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

from flask import request
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge, RequestTimeout, UnsupportedMediaType
from werkzeug.http import parse_dict_header

from jobrunner.domain.errors import InvalidRequest, Problem
from jobrunner.domain.job import IdempotencyKey
from jobrunner.domain.spec import escape_pointer
from jobrunner.web.services import current_request

KEY_MAX = 255
"""Most characters of an idempotency key."""

M = TypeVar("M", bound=BaseModel)


def parse_body(model: type[M]) -> M:
    """Read the JSON body of the current request.

    A request without a body is one with an empty object.

    Raises:
        UnsupportedMediaType: it says to be something else.
        BadRequest: it is not JSON.
        InvalidRequest: it is not of this model.
    """
    body, asked = read_body(), current_request()
    if not body:
        body = b"{}"  # whatever its type: the model says whether that is enough
    elif asked.mimetype != "application/json":
        raise UnsupportedMediaType("the body must be JSON: send Content-Type: application/json")
    elif asked.mimetype_params.get("charset", "utf-8").lower() not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType("the body must be UTF-8, as all JSON is")
    elif asked.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("the body must not be compressed: send no Content-Encoding")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _translate(error) from None


def read_body() -> bytes:
    """Return the body of the current request.

    Raises:
        RequestEntityTooLarge, BadRequest: it is too long, or can't be read.
    """
    asked = current_request()
    try:
        body = asked.get_data(cache=False)
    except HTTPException as error:
        if isinstance(error.__context__, TimeoutError):
            raise RequestTimeout("the body came too slowly") from error
        raise
    except Exception as error:
        # The server's own: chunks that are none, for one; or the connection is broken.
        raise BadRequest(f"the body can't be read: {error}") from error
    length, most = asked.content_length, asked.max_content_length
    if length is None and most is not None and len(body) >= most:
        raise RequestEntityTooLarge  # in chunks: Werkzeug stops reading at the limit without a word
    if length is not None and len(body) < length:
        raise BadRequest(f"the body has {len(body)} bytes, and its Content-Length says {length}")
    return body


def parse_query(model: type[M]) -> M:
    """Read the query of the current request.

    Raises:
        InvalidRequest: a parameter is unknown, wrong or given twice.
    """
    if not request.query_string:
        return model()
    lists = _list_names(model)
    values: dict[str, Any] = {}
    problems = []
    for name, given in request.args.lists():
        if name in lists:
            values[name] = given
        else:
            values[name] = given[0]
            if len(given) > 1:
                problems.append(Problem(f"?{name}", "must be given once"))
    if problems:
        raise InvalidRequest(problems)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _translate(error, mark="?") from None


def parse_wait(asked: float | None, most: float) -> float | None:
    """Return how long the client wants to wait, cut to the most that is allowed; None when it did not say.

    Args:
        asked: the parameter ``wait``, which wins over ``Prefer: wait=N`` (RFC 7240).
        most: the configured ceiling, in seconds.
    """
    if asked is None:
        given = request.headers.get("Prefer")  # the server has joined several with commas
        text = parse_dict_header(given).get("wait") if given is not None else None
        # A preference that makes no sense is ignored, as the RFC has it.
        asked = float(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else None
    return min(asked, most) if asked is not None else None


def parse_idempotency_key(asked: Callable[[], object]) -> IdempotencyKey | None:
    """Return the ``Idempotency-Key`` of the current request: a quoted string, or the bare text many clients send.

    Args:
        asked: returns what was asked for, as JSON has it; called only when there is a key.

    Raises:
        InvalidRequest: it is empty, too long, or no text that can be a key.
    """
    given = request.headers.get("Idempotency-Key")
    if given is None:
        return None
    text = given[1:-1] if len(given) >= 2 and given[0] == given[-1] == '"' else given
    if not 1 <= len(text) <= KEY_MAX or not text.isascii() or not text.isprintable():
        raise InvalidRequest.at("Idempotency-Key", f"must be 1 to {KEY_MAX} printable ASCII characters")
    return IdempotencyKey(text, hashlib.sha256(json.dumps(asked(), sort_keys=True).encode()).hexdigest())


def decode_content(value: object) -> bytes:
    """Turn a string, or ``{"base64": "…"}``, into bytes; a validator of pydantic models.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and value.keys() == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("is not base64") from None
    raise ValueError('must be a string, or {"base64": "…"}')


@cache
def _list_names(model: type[BaseModel]) -> frozenset[str]:
    """Return the parameters that may be given more than once."""

    def is_list(annotation: object) -> bool:
        return get_origin(annotation) is list or any(is_list(part) for part in get_args(annotation))

    return frozenset(name for name, field in model.model_fields.items() if is_list(field.annotation))


def _translate(error: ValidationError, mark: str = "#/") -> BadRequest | InvalidRequest:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    for found in details:
        if found["type"] == "json_invalid":
            return BadRequest(f"the body is not JSON: {found['msg'].removeprefix('Invalid JSON: ')}")
    return InvalidRequest([Problem(_pointer(found["loc"], mark), _words(found)) for found in details])


def _pointer(location: tuple[int | str, ...], mark: str) -> str:
    if not location:
        return mark.rstrip("/")
    return mark + "/".join(escape_pointer(str(part)) for part in location if part != "[key]")


_WORDS = {
    "extra_forbidden": "is not known here",
    "missing": "is missing",
}


def _words(found: Mapping[str, Any]) -> str:
    text: str = found["msg"]
    return _WORDS.get(found["type"]) or text.removeprefix("Value error, ").replace("Input should be", "must be")
