"""Which faults may pass by themselves, told by what file systems raise."""

from __future__ import annotations

import ssl

import aiohttp
import botocore.exceptions
import fsspec
import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from shardpipe.store.faults import may_pass


def answered(status: int, code: str) -> Exception:
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = translate_boto_error(ClientError(response, "GetObject"))
    return error


def http_status(status: int) -> Exception:
    return aiohttp.ClientResponseError(None, (), status=status)  # type: ignore[arg-type]


def wrapped(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("the library says") from inner
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        fsspec.FSTimeoutError(),
        ConnectionResetError(104, "reset"),
        ConnectionRefusedError(111, "refused"),
        BrokenPipeError(32, "pipe"),
        EOFError(),
        OSError(113, "no route"),
        answered(500, "InternalError"),
        answered(503, "SlowDown"),
        answered(503, "503"),
        answered(429, "TooManyRequests"),
        answered(400, "RequestTimeout"),
        http_status(502),
        http_status(429),
        aiohttp.ClientPayloadError("Response payload is not completed"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientOSError(),
        botocore.exceptions.ReadTimeoutError(endpoint_url="u"),
        botocore.exceptions.ConnectTimeoutError(endpoint_url="u"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="u"),
        botocore.exceptions.ConnectionClosedError(endpoint_url="u"),
        botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        botocore.exceptions.FlexibleChecksumError(error_msg="Expected checksum a did not match calculated checksum b"),
        botocore.exceptions.ChecksumError(checksum_type="crc32", expected_checksum="a", actual_checksum="b"),
        wrapped(ConnectionResetError(104, "reset")),
        wrapped(http_status(503)),
    ],
    ids=repr,
)
def test_faults_that_may_pass(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "none"),
        PermissionError(13, "denied"),
        IsADirectoryError(21, "folder"),
        NotImplementedError(),
        ImportError("install gcsfs"),
        ValueError("what"),
        OSError(22, "invalid"),
        OSError(28, "no space left"),
        answered(404, "NoSuchKey"),
        answered(403, "AccessDenied"),
        answered(403, "InvalidAccessKeyId"),
        answered(400, "ExpiredToken"),
        answered(416, "InvalidRange"),
        answered(501, "NotImplemented"),
        http_status(401),
        http_status(404),
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.PartialCredentialsError(provider="env", cred_var="key"),
        botocore.exceptions.SSLError(endpoint_url="u", error="e").with_traceback(None),
        wrapped(http_status(403)),
        wrapped(ssl.SSLCertVerificationError("self-signed")),
    ],
    ids=repr,
)
def test_faults_that_stay(error: Exception) -> None:
    if isinstance(error, botocore.exceptions.SSLError):
        error.__cause__ = ssl.SSLCertVerificationError("self-signed")
    assert not may_pass(error)
