"""Which faults may pass by themselves, told by what file systems raise. Their libraries are not imported for it."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator

__all__ = ["may_pass", "refuses_range", "told_fault"]

_NEVER = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ImportError,
)
_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.EREMOTEIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_STATUSES = {408, 425, 429, 500, 502, 503, 504, 507, 509, 522, 524}
# Codes that object stores send with a status of 400 or 403 and yet ask to try again.
_CODES = {
    "BandwidthLimitExceeded",
    "InternalError",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
# Of botocore, aiohttp and urllib3, azure, gcsfs: connections that broke; answers that ended early, made no sense or
# came with another one's checksum.
_NAMES = {
    "ChecksumError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionClosedError",
    "ConnectionError",
    "EndpointConnectionError",
    "FlexibleChecksumError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProtocolError",
    "ResponseParserError",
    "ServiceRequestError",
    "ServiceResponseError",
    "gaierror",
}


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed where this one raised `error`: after timeouts, broken connections, truncated
    answers, and a server's word that it is busy or at fault; never where it refused, or where nothing is there.

    The first of the error and its causes that is of a known kind decides; what is unknown does not pass.
    """
    links = list(_chain(error))
    if any(isinstance(link, ssl.SSLCertVerificationError) for link in links):
        return False
    return next((verdict for link in links if (verdict := _verdict(link)) is not None), False)


def told_fault(error: Exception) -> BaseException:
    """What is to be told of `error`: itself, but its cause where fsspec's HTTP, when it asks for a file's size, makes
    of a refusal or a broken connection that there is no such file.
    """
    cause = error.__cause__
    if cause is None or not isinstance(error, FileNotFoundError) or isinstance(cause, FileNotFoundError):
        return error
    answer = _answer(cause)
    another = isinstance(cause, OSError) or may_pass(cause) if answer is None else answer[0] not in (404, 410)
    return cause if another else error


def refuses_range(error: BaseException) -> bool:
    """Whether a server has answered that the range lies beyond the file."""
    return any((_answer(link) or (0, ""))[0] == 416 for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, the last one raised first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _verdict(error: BaseException) -> bool | None:
    if (answer := _answer(error)) is not None:
        status, code = answer
        return status in _STATUSES or code in _CODES
    if isinstance(error, _NEVER):
        return False
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return True if isinstance(error, TimeoutError | EOFError) or names & _NAMES else None


def _answer(error: BaseException) -> tuple[int, str] | None:
    """HTTP status and error code, where a server has answered."""
    response = getattr(error, "response", None)  # botocore's
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status, str(response.get("Error", {}).get("Code", ""))
    for field in ("status", "status_code", "code"):  # aiohttp's, azure's and gcsfs'
        status = getattr(error, field, None)
        if isinstance(status, int) and 400 <= status < 600:
            return status, ""
    return None
