"""The types of what a request is made of, with what ``/openapi.json`` says about each.

They check types. Bounds and patterns are only described here: what holds for
every API is checked by `jobrunner.domain.spec` and ``service``.
"""

import re
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BeforeValidator,
    Field,
    FiniteFloat,
    PlainValidator,
    WithJsonSchema,
)

from jobrunner.domain.arguments import ARGUMENT_MAX, PATH_MAX, RESERVED_ENV_PREFIX, VARIABLES_MAX
from jobrunner.domain.callback import URL_MAX
from jobrunner.domain.exitstatus import SIGNAL_PATTERN
from jobrunner.domain.spec import LABEL_MAX, NAME_MAX
from jobrunner.web.parse import decode_content

_NO_NUL = {"pattern": r"^[^\u0000]*$"}
_CONTENT = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"base64": {"type": "string", "contentEncoding": "base64"}},
            "required": ["base64"],
            "additionalProperties": False,
        },
    ]
}

Text = Annotated[str, Field(json_schema_extra=_NO_NUL)]
# Limits are in bytes: so many characters are too many in any case.
Argument = Annotated[str, Field(json_schema_extra={**_NO_NUL, "maxLength": ARGUMENT_MAX})]
Command = Annotated[
    str,
    Field(json_schema_extra={"pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$", "maxLength": ARGUMENT_MAX}),
]
Words = Annotated[list[Argument], Field(json_schema_extra={"minItems": 1})]
Content = Annotated[bytes, PlainValidator(decode_content), WithJsonSchema(_CONTENT)]
FileName = Annotated[str, Field(json_schema_extra={"pattern": r"^(?!\.{1,2}$)[^/\u0000]+$", "maxLength": 255})]
EnvName = Annotated[str, Field(json_schema_extra={"pattern": rf"^(?!{RESERVED_ENV_PREFIX})[^=\u0000]+$"})]
Environment = Annotated[dict[EnvName, Argument], Field(json_schema_extra={"maxProperties": VARIABLES_MAX})]
Directory = Annotated[str, Field(json_schema_extra={**_NO_NUL, "minLength": 1, "maxLength": PATH_MAX})]
LabelKey = Annotated[str, Field(json_schema_extra={"pattern": r"^[^:\u0000-\u001f\u007f]+$", "maxLength": LABEL_MAX})]
LabelValue = Annotated[str, Field(json_schema_extra={"pattern": r"^[^\u0000-\u001f\u007f]*$", "maxLength": LABEL_MAX})]
Name = Annotated[str, Field(json_schema_extra={"pattern": r"^[^\u0000-\u001f\u007f]+$", "maxLength": NAME_MAX})]
CallbackUrl = Annotated[
    str, Field(json_schema_extra={"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://", "maxLength": URL_MAX})
]
SignalName = Annotated[str, Field(json_schema_extra={"pattern": SIGNAL_PATTERN})]
Seconds = Annotated[FiniteFloat, Field(json_schema_extra={"minimum": 0})]
Include = Annotated[
    Literal["output"] | None, Field(description="`output`: the document carries the text of both streams")
]
Wait = Annotated[
    FiniteFloat | None,
    Field(ge=0, description="seconds to wait for the end; also `Prefer: wait=N`, which it overrules"),
]
Flag = Annotated[bool, BeforeValidator(lambda value: True if value == "" else value)]
"""A parameter that needs no value."""


def _check_time(value: str) -> str:
    # pydantic takes numbers, too, and guesses whether these are seconds or milliseconds.
    if not re.match(r"\d{4}-\d\d-\d\d[Tt ]", value, re.ASCII):
        raise ValueError("must be a time like 2026-01-31T12:00:00Z")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_check_time)]
