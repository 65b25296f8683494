"""A resumable upload to Cloud Storage or Drive, which goes on where it was cut."""

from __future__ import annotations

import re
from typing import Any

import requests
from google.api_core.exceptions import from_http_response

from nexus_engine.backends.content import Content, OfBytes
from nexus_engine.backends.retrying import Again, Attempt, Sending
from nexus_engine.errors import ObjectStoreFailed

_GOES_ON = 308
"""Source: Resumable uploads (Cloud Storage documentation): not the redirect of RFC 9110."""


class Upload:
    """One session of an upload.

    Args:
        url: The session's, in which its credentials are.
        size: Bytes in all; not 0.
    """

    def __init__(self, transport: requests.Session, url: str, size: int) -> None:
        self._transport = transport
        self._url = url
        self._size = size
        self.stored = 0
        """Bytes that the server has; the next piece begins there."""
        self.made: dict[str, Any] | None = None
        """It has them all, and has made this object: its description in the JSON API."""

    def send(self, piece: Content, this: Attempt) -> None:
        """Send what comes after `stored`; where that has moved afterwards, not all of it came."""
        begins = self.stored
        if this.number:
            self._note(self._put(OfBytes(b""), f"bytes */{self._size}", this))
            if self.made or self.stored != begins:
                return
        end = begins + piece.size
        self._note(self._put(piece, f"bytes {begins}-{end - 1}/{self._size}", this))
        if self.made is None and self.stored <= begins:
            raise Again(ObjectStoreFailed(f"the server kept none of {piece.size} bytes"))

    def abort(self, this: Attempt) -> None:
        """Have the server forget what it got."""
        self._transport.delete(self._url, timeout=(this.send_s(0), this.wait_s())).close()

    def _put(self, piece: Content, content_range: str, this: Attempt) -> requests.Response:
        return self._transport.put(
            self._url,
            data=Sending(piece, this) if piece.size else b"",
            headers={"Content-Range": content_range},
            timeout=(this.send_s(0), this.wait_s()),
            allow_redirects=False,
        )

    def _note(self, response: requests.Response) -> None:
        if response.status_code == _GOES_ON:
            held = re.fullmatch(r"bytes=0-(\d+)", response.headers.get("Range", ""))
            self.stored = int(held[1]) + 1 if held else 0
        elif response.ok:
            self.made = response.json()
        elif response.status_code in (404, 410):
            raise ObjectStoreFailed("the server has forgotten the upload: begin it anew")
        else:
            raise from_http_response(response)
