"""What google-cloud-storage and google-auth raise, in our own words."""

from __future__ import annotations

import re
from json import JSONDecodeError

from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from requests.exceptions import RequestException, Timeout
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

FAILURES = (
    GoogleAPICallError, GoogleAuthError, DataCorruption, InvalidResponse, RequestException,
    HTTPError, ConnectionError, TimeoutError, JSONDecodeError,
)  # fmt: skip

_SILENT = (Timeout, SocketTimeoutError, TimeoutError)
_PASSING_REASONS = frozenset(("rateLimitExceeded", "userRateLimitExceeded"))
_FULL = frozenset(("storageQuotaExceeded", "teamDriveFileLimitExceeded"))


def status_of(error: Exception) -> int:
    """Return the HTTP status of an answer; 0 if there was none."""
    if isinstance(error, GoogleAPICallError):
        return int(error.code or 0)
    if isinstance(error, InvalidResponse):
        return int(error.response.status_code)
    return 0


def explain(error: Exception, doing: str, url: str) -> EngineError | Again:
    """Return what to raise instead of one of `FAILURES`.

    Args:
        doing: Completes "cannot …".
        url: The bucket's.

    Source: HTTP status and error codes for JSON (Cloud Storage documentation), Resolve errors
    (Drive documentation).
    """
    cannot, said = f"cannot {doing} in {url}", " ".join(str(error).split())
    if isinstance(error, DefaultCredentialsError) or _is_final(error):
        return StoreInaccessible(
            f"no valid credentials for {url}: set GOOGLE_APPLICATION_CREDENTIALS to the file of a"
            f" service account, or run gcloud auth application-default login ({said})"
        )
    if isinstance(error, _SILENT):
        return Again(StoreHung(f"{cannot}: no answer"))
    status = status_of(error)
    if not status or _reasons(error) & _PASSING_REASONS:
        return Again(ObjectStoreFailed(f"{cannot}: {said}"), after_s=_retry_after_s(error))
    if _reasons(error) & _FULL:
        return NoSpace(f"{cannot}: no space left at the server ({said})")
    if status in (401, 403):
        return StoreInaccessible(
            f"{cannot}: not allowed; look at the credentials and at their roles ({said})"
        )
    if status in (404, 410):
        return ObjectNotFound(f"{cannot}: there is none")
    if status == 412:
        return ObjectChanged(f"{cannot}: it is another version by now")
    if status in (405, 501):
        return NotSupported(f"{cannot}: the server has no such function ({said})")
    if status == 507:
        return NoSpace(f"{cannot}: no space left at the server")
    failed = ObjectStoreFailed(f"{cannot}: HTTP {status}: {said}")
    if status in PASSING_STATUSES:
        return Again(failed, after_s=_retry_after_s(error))
    return failed


def _reasons(error: Exception) -> set[str]:
    """Return what a 403 is for; of Drive, it may be the rate of requests."""
    if not isinstance(error, GoogleAPICallError):
        return set()
    return {str(one["reason"]) for one in error.errors if isinstance(one, dict) and "reason" in one}


def _is_final(error: Exception) -> bool:
    """Tell whether credentials were found, and refused; a network that fails is no refusal."""
    return isinstance(error, RefreshError) and not error.retryable


def _retry_after_s(error: Exception) -> float:
    """Source: RFC 9110, 10.2.3; a date instead of seconds is not worth a clock of theirs."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    value = str(headers.get("Retry-After", ""))
    return float(value) if re.fullmatch(r"\d{1,6}", value) else 0.0
