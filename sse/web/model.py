"""The JSON of `POST /forward-sse`, as a pydantic model: what is checked is what the documents say."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..errors import InvalidRequest


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class ForwardRequest(BaseModel):
    """A call of an upstream; unknown fields are ignored. The names are the seed's front end's."""

    model_config = ConfigDict(extra="ignore", strict=True)

    targetUrl: Annotated[
        str, Field(min_length=1, max_length=8192, description="absolute http(s) URL that an upstream covers")
    ]
    method: Annotated[
        str, BeforeValidator(_upper), Field(pattern="^(GET|POST)$", description="get or post, in any case")
    ] = "POST"
    body: Annotated[
        str | dict[str, Any] | list[Any] | None,
        Field(description="a string is sent as it is, in UTF-8; an object or array as compact JSON"),
    ] = None
    header: Annotated[
        str | dict[str, Any],
        Field(description="fields of the upstream request: an object, or a string that holds one in JSON"),
    ] = Field(default_factory=dict)
    passcode: Annotated[str | None, Field(description="the gateway's own credential")] = None

    def encode_body(self) -> bytes | None:
        """Return the bytes of the upstream request's body, None for none.

        :raises InvalidRequest: if it has no form in UTF-8.
        """
        if self.body is None:
            return None
        text = self.body if isinstance(self.body, str) else _compact(self.body)
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("body: a lone surrogate has no form in UTF-8") from error


def _compact(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))
