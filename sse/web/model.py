"""The JSON of requests and refusals, as pydantic models, which the API document is made from."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from ..errors import InvalidRequest

# Written out, because JSON Schema has no case-insensitive enum, and pydantic does not see what parse_fields accepts.
_METHOD_SCHEMA = {"type": "string", "pattern": "^([Gg][Ee][Tt]|[Pp][Oo][Ss][Tt])$", "examples": ["post"]}
_VALUE_SCHEMA = {"type": ["string", "number"], "pattern": r"^[\t\x20-\x7e\x80-\xff]*$"}
_FIELDS_SCHEMA = {
    "type": "object",
    "maxProperties": 100,
    "propertyNames": {"pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"},
    "additionalProperties": {"anyOf": [_VALUE_SCHEMA, {"type": "array", "items": _VALUE_SCHEMA, "maxItems": 100}]},
}
_HEADER_SCHEMA = {
    "anyOf": [
        _FIELDS_SCHEMA,
        {"type": "string", "contentMediaType": "application/json", "contentSchema": _FIELDS_SCHEMA},
    ],
    "default": {},
}


def _parse_method(value: object) -> object:
    method = value.upper() if isinstance(value, str) else value
    if method not in ("GET", "POST"):
        raise ValueError("must be get or post")
    return method


def _parse_whole(value: object) -> object:
    # JSON has one kind of number, and 5.0 is a whole one.
    return int(value) if isinstance(value, float) and value.is_integer() else value


class ForwardRequest(BaseModel):
    """A forward request; unknown fields are ignored. The names are those of front ends that exist."""

    model_config = ConfigDict(extra="ignore", strict=True)

    targetUrl: Annotated[
        str,
        Field(
            min_length=1,
            max_length=8192,
            description="absolute http(s) URL that an upstream covers",
            json_schema_extra={"pattern": "^[A-Za-z][A-Za-z0-9+.-]*:"},
        ),
    ]
    method: Annotated[
        str,
        BeforeValidator(_parse_method),
        WithJsonSchema(_METHOD_SCHEMA),
        Field(description="get or post, in any case"),
    ] = "POST"
    body: Annotated[
        str | dict[str, Any] | list[Any] | None,
        Field(description="a string is sent as it is, in UTF-8; an object or array as compact JSON"),
    ] = None
    header: Annotated[
        str | dict[str, Any],
        WithJsonSchema(_HEADER_SCHEMA),
        Field(description="fields of the upstream request: an object, or a string that holds one in JSON"),
    ] = Field(default_factory=dict)
    passcode: Annotated[str | None, Field(description="the gateway's own credential")] = None
    resume: Annotated[
        Annotated[int, Field(ge=1, le=10**9)] | None,
        BeforeValidator(_parse_whole),
        Field(description="seconds for which the response is kept after its end"),
    ] = None

    def encode_body(self) -> bytes | None:
        """Return the body of the upstream request, None if there is none.

        :raises InvalidRequest: if it cannot be sent.
        """
        if self.body is None:
            return None
        try:
            text = self.body if isinstance(self.body, str) else _compact(self.body)
            return text.encode()
        except ValueError as error:
            raise InvalidRequest("body: a lone surrogate, or a number beyond all bounds, cannot be sent") from error


class ErrorObject(BaseModel):
    """What the SDKs of LLM APIs read of a refusal."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    message: str
    type: Annotated[str, Field(description="OpenAI's and Anthropic's word for the cause")]
    code: str
    param: None = None


# What `SSEError.problem` returns.
class Problem(BaseModel):
    """A refusal of the gateway's own (RFC 9457); `code` is stable, the texts may change."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    request_id: Annotated[str, Field(description="the same as X-Request-Id, and as in the gateway's log")]
    error: ErrorObject


def _compact(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
