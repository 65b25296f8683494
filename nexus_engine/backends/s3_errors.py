"""What boto3 raises, in our own words."""

from __future__ import annotations

import re
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    ConnectionClosedError,
    ConnectionError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    TokenRetrievalError,
    UnknownTokenProviderError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as SocketTimeoutError

from nexus_engine.backends.retrying import PASSING_STATUSES, Again
from nexus_engine.errors import (
    EngineError,
    NoSpace,
    NotSupported,
    ObjectChanged,
    ObjectNotFound,
    ObjectStoreFailed,
    StoreHung,
    StoreInaccessible,
)

FAILURES = (BotoCoreError, ClientError, HTTPError, ResponseParserError, TimeoutError)
"""``HTTPError`` and ``TimeoutError`` come while a body is received."""

_NO_CREDENTIALS = (
    CredentialRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
    UnknownTokenProviderError,
)
_SILENT = (ConnectTimeoutError, ReadTimeoutError, SocketTimeoutError, TimeoutError)
_PASSING = (
    ChecksumError, ConnectionError, HTTPClientError, HTTPError, IncompleteReadError,
    ResponseParserError,
)  # fmt: skip

_EXPIRED = frozenset(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"))
_ELSEWHERE = frozenset(("PermanentRedirect", "AuthorizationHeaderMalformed"))
_PASSING_CODES = frozenset(
    ("BadDigest", "ConditionalRequestConflict", "IncompleteBody", "OperationAborted",
     "RequestTimeout", "XAmzContentChecksumMismatch")
)  # fmt: skip
"""Of answers with a status of 400 or 409, which alone would mean: never again."""


def status_of(error: Exception) -> int:
    """Return the HTTP status of an answer; 0 if there was none."""
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_cut(error: Exception) -> bool:
    """Tell whether a connection ended before there was an answer."""
    return isinstance(error, ConnectionClosedError)


def code_of(error: Exception) -> str:
    """Return S3's name of the error; an answer to HEAD has none, only a number."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""


def explain(error: Exception, doing: str, url: str) -> EngineError | Again:
    """Return what to raise instead of one of `FAILURES`.

    Args:
        doing: Completes "cannot …".
        url: The bucket's.

    Source: Error Responses (Amazon S3 API Reference).
    """
    if isinstance(error, ClientError):
        return _explain_answer(error, f"cannot {doing} in {url}", url)
    if isinstance(error, _NO_CREDENTIALS):
        return StoreInaccessible(
            f"no credentials for {url}: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and"
            f" AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials ({_one_line(error)})"
        )
    if isinstance(error, _SILENT):
        return Again(StoreHung(f"cannot {doing} in {url}: no answer"))
    if isinstance(error, _PASSING):
        return Again(ObjectStoreFailed(f"cannot {doing} in {url}: {_one_line(error)}"))
    return ObjectStoreFailed(f"cannot {doing} in {url}: {_one_line(error)}")


def _explain_answer(error: ClientError, cannot: str, url: str) -> EngineError | Again:
    code, status = code_of(error), status_of(error)
    said = _said(error)
    if code == "NoSuchBucket":
        return StoreInaccessible(f"there is no bucket {url}: make it, or correct the URL")
    if code in _EXPIRED:
        return StoreInaccessible(f"{cannot}: the credentials have expired; renew them ({said})")
    if code in _ELSEWHERE or status == 301:
        return StoreInaccessible(f"{cannot}: it is in another region; give region=… ({said})")
    if status in (401, 403):
        return StoreInaccessible(
            f"{cannot}: not allowed; look at the credentials, at what they may do with the bucket,"
            f" and at this machine's clock ({said})"
        )
    if status == 404:
        return ObjectNotFound(f"{cannot}: there is none")
    if status == 412:
        return ObjectChanged(f"{cannot}: it is another version by now")
    if status in (405, 501):
        return NotSupported(f"{cannot}: the server has no such function ({said})")
    if status == 507:
        return NoSpace(f"{cannot}: no space left at the server")
    failed = ObjectStoreFailed(f"{cannot}: {said}")
    if status in PASSING_STATUSES or code in _PASSING_CODES:
        return Again(failed, after_s=_retry_after_s(error))
    return failed


def _said(error: ClientError) -> str:
    answer = error.response["Error"]
    parts = [str(answer.get("Code", "")), _one_line(answer.get("Message", ""))]
    return f"HTTP {status_of(error)}: " + ": ".join(part for part in parts if part)


def _retry_after_s(error: ClientError) -> float:
    """Source: RFC 9110, 10.2.3; a date instead of seconds is not worth a clock of theirs."""
    headers: dict[str, Any] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    value = str(headers.get("retry-after", ""))
    return float(value) if re.fullmatch(r"\d{1,6}", value) else 0.0


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
