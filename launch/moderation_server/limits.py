"""The limits of the moderation server, and the answer to a request that breaks one."""

from dataclasses import dataclass, fields

from gpt.errors import ConfigError


@dataclass(frozen=True)
class ServerLimits:
    """What one request and all waiting requests may cost."""

    max_body_bytes: int = 1 << 20
    max_texts: int = 32
    """Texts of one request."""
    max_text_bytes: int = 32 << 10
    """UTF-8 bytes of one text. Longer than the model's context is allowed: such texts are scored in windows."""
    max_waiting: int = 512
    """Texts that wait for the model, of all requests."""
    max_requests: int = 1024
    """Requests that are read or answered at the same time."""
    max_connections: int = 1024
    """Open connections, also those that have sent no request. More are answered with status 503 and closed."""
    max_batch_bytes: int = 64 << 10
    """Bytes of the texts that the model gets at once, so that a large request does not hold up the small ones."""
    read_timeout_s: int = 30
    """Time that a client has to send its request: for the header of a connection's first one, and for a body."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ConfigError(f"--{field.name.replace('_', '-')} {value} is invalid: must be at least 1")


class Refused(Exception):
    """A request is answered with an error. The message may name a field of the request, and never quotes a text.

    `status`: of HTTP. `code`: a word for programs. `param`: the field at fault. `retry_after_s`: when to try again.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after_s = param, retry_after_s


def invalid(message: str, *, param: str | None = None, code: str = "invalid_request") -> Refused:
    """A refusal for a request that will never be accepted."""
    return Refused(400, code, message, param=param)
