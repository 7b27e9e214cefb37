"""The one shape of every error answer, and the one exception a view raises to send it."""

from __future__ import annotations

import msgspec

from crusades.records import ApiError


class Refused(Exception):
    """A request that gets an error answer. The message is for people; `error` is for programs."""

    def __init__(self, status: int, error: str, message: str) -> None:
        super().__init__(message)
        self.answer = ApiError(error=error, message=message, status=status)


NAMES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 406: "not_acceptable", 413: "too_large", 414: "too_long", 415: "unsupported",
         500: "internal", 503: "unavailable"}  # fmt: skip
"""HTTP status → `ApiError.error` for errors that the framework raises."""


def body(answer: ApiError) -> bytes:
    """Encoded."""
    return msgspec.json.encode(answer)
