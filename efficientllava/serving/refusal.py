"""Errors as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

from efficientllava.errors import UserError

TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: of the HTTP response; 400 and above.
        param: the field of the request that is at fault.
        code: the fault's name for programs.
    """

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        self.message, self.status, self.param, self.code = message, status, param, code
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def refusal_of(error: UserError, param: str = "messages") -> Refusal:
    """What a request did wrong, with its remedy."""
    remedy = f"; {error.remedy}" if error.remedy else ""
    return Refusal(f"{error.where}: {error.what}{remedy}", param=param, code="invalid_value")
