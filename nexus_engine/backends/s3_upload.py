"""An S3 object on its way in parts."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from nexus_engine.backends.content import Content, OfBytes
from nexus_engine.backends.retrying import Attempt, Sending, Tries
from nexus_engine.backends.s3_errors import FAILURES
from nexus_engine.errors import BackendError, NotSupported

WRITER = "nexus-writer"
"""Metadata: a random number of the `put`, by which a retry knows its own object again."""
PARTS_MAX = 10_000
_PIECE = 1 << 20


class MultipartUpload:
    """A context in which parts are sent; those of an upload that is not completed are removed.

    Args:
        client: Of boto3.
        at: Bucket and key.
        doing: What is done, for errors; completes "cannot …".
    """

    def __init__(self, client: Any, at: Mapping[str, str], tries: Tries, *, doing: str) -> None:
        self.writer = uuid.uuid4().hex
        self._client = client
        self._at = at
        self._tries = tries
        self._doing = doing
        self._parts: list[dict[str, object]] = []
        self._is_complete = False

    def __enter__(self) -> MultipartUpload:
        metadata = {WRITER: self.writer}
        begun = self._tries(
            self._doing,
            lambda _: self._client.create_multipart_upload(**self._at, Metadata=metadata),
        )
        self._upload = {**self._at, "UploadId": begun["UploadId"]}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_complete:
            return
        # What cannot be removed now is for the bucket's lifecycle rule: the error that brought us
        # here matters more.
        with suppress(BackendError, NotSupported):
            self._tries(
                f"{self._doing}: abort",
                lambda _: self._client.abort_multipart_upload(**self._upload),
            )

    def send(self, content: bytes) -> None:
        """Send the next part; all but the last one have 5 MiB at least."""
        number, digest = len(self._parts) + 1, md5_of(OfBytes(content))

        def attempt(this: Attempt) -> str:
            reply = self._client.upload_part(
                **self._upload,
                PartNumber=number,
                Body=Sending(OfBytes(content), this),
                ContentMD5=digest,
            )
            return str(reply["ETag"])

        etag = self._tries(f"{self._doing}: part {number}", attempt, size=len(content))
        self._parts.append({"PartNumber": number, "ETag": etag})

    def copy(self, source: Mapping[str, str], etag: str, first: int, last: int) -> None:
        """Have the server take the next part from another object, of this version."""
        number = len(self._parts) + 1
        reply = self._tries(
            f"{self._doing}: part {number}",
            lambda _: self._client.upload_part_copy(
                **self._upload, PartNumber=number, CopySource=source, CopySourceIfMatch=etag,
                CopySourceRange=f"bytes={first}-{last}",
            ),
        )  # fmt: skip
        self._parts.append({"PartNumber": number, "ETag": reply["CopyPartResult"]["ETag"]})

    def complete(
        self, condition: Mapping[str, str], on_failure: Callable[[Attempt, Exception], object]
    ) -> None:
        """Make an object of the parts.

        Args:
            on_failure: Returns if the object is there all the same; else it raises.
        """

        def attempt(this: Attempt) -> None:
            try:
                self._client.complete_multipart_upload(
                    **self._upload, MultipartUpload={"Parts": self._parts}, **condition
                )
            except FAILURES as error:
                on_failure(this, error)

        self._tries(self._doing, attempt)
        self._is_complete = True


def md5_of(content: Content) -> str:
    """Source: RFC 1864."""
    digest = hashlib.md5(usedforsecurity=False)
    for offset in range(0, content.size, _PIECE):
        digest.update(content.read(offset, min(_PIECE, content.size - offset)))
    return base64.b64encode(digest.digest()).decode()
