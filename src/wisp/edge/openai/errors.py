"""Errors in OpenAI's form: which status, type and code each of ours has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from pydantic import ValidationError

from wisp.errors import ConnectionLost, DeviceClosing, EngineError, InvalidRequest, PeerError, ServerBusy


@dataclass(slots=True)
class ApiError(Exception):
    """What the client is told when a request fails."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """The response's headers."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, ceil(self.retry_after)))}


def not_supported(field: str, what: str | None = None) -> ApiError:
    """A field that asks for something WISP does not do."""
    return ApiError(
        400, f"{what or field} is not supported by this endpoint", param=field, code="unsupported_parameter"
    )


def invalid(field: str, message: str) -> ApiError:
    """A field whose value cannot be used."""
    return ApiError(400, message, param=field, code="invalid_value")


def context_exceeded(num_tokens: int, context_length: int, field: str) -> ApiError:
    """A prompt that leaves no room for an answer."""
    message = f"the prompt has {num_tokens} tokens, but the model's context holds {context_length}"
    return ApiError(400, message, param=field, code="context_length_exceeded")


def as_api_error(error: BaseException) -> ApiError:
    """Any failure as the client is told of it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequest):
        return ApiError(400, str(error), param=error.field)
    if isinstance(error, ServerBusy):
        return ApiError(429, str(error), "rate_limit_error", None, "server_busy", error.retry_after)
    for kind, status, code in _FAILURES:
        if isinstance(error, kind):
            return ApiError(status, str(error), "server_error", None, code)
    return ApiError(500, f"internal error: {type(error).__name__}", "server_error", None, "internal_error")


_FAILURES = (
    (ConnectionLost, 503, "server_unreachable"),
    (PeerError, 503, "server_unavailable"),
    (DeviceClosing, 503, "device_closing"),
    (EngineError, 500, "engine_error"),
)


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request's body."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    field = ".".join(path[:2]) if path[:1] == ["wisp"] else path[0] if path else None
    return ApiError(400, f"{'.'.join(path) or 'body'}: {first['msg']}", param=field, code="invalid_value")
