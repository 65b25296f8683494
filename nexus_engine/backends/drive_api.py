"""Google Drive's REST interface, as far as files in folders need it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import requests
from google.api_core.exceptions import from_http_response

from nexus_engine.backends.base import View
from nexus_engine.backends.content import Content, Slice
from nexus_engine.backends.google_errors import FAILURES, explain, status_of
from nexus_engine.backends.google_upload import Upload
from nexus_engine.backends.receiving import receive_answer
from nexus_engine.backends.retrying import Again, Attempt, Retrying, Tries
from nexus_engine.errors import BackendError, ObjectStoreFailed

File = dict[str, Any]
"""A file, folder or document, with the fields of `FIELDS` as far as it has them."""

FOLDER = "application/vnd.google-apps.folder"
FIELDS = "id,name,mimeType,size,md5Checksum,headRevisionId,version,modifiedTime,createdTime,parents"
_ANY = "application/octet-stream"
_PAGE = 1000
_IDS = 100
_READ_MAX = 1 << 30
_PIECE_BYTES = 96 << 20


class DriveApi:
    """Requests, each tried again as far as that is safe.

    Args:
        http: With credentials.
        endpoint: Such as ``https://www.googleapis.com``.
        url: Of the bucket, for errors.

    Source: Google Drive API v3 reference.
    """

    def __init__(
        self, http: requests.Session, endpoint: str, *, url: str, retrying: Retrying
    ) -> None:
        self._http = http
        self._endpoint = endpoint
        self._try = Tries(retrying, FAILURES, explain, url)
        self._ids: list[str] = []

    def get(self, file_id: str) -> File:
        """Return a file, trashed or not.

        Raises:
            ObjectNotFound: there is none of this id.
        """
        found: File = self._json(
            "look up a file", "GET", f"/drive/v3/files/{file_id}", fields=FIELDS
        )
        return found

    def iter_children(self, folder_id: str, names: Collection[str] | None = None) -> Iterator[File]:
        """Yield what is in a folder, of these names or of any; not what is in the trash."""
        query = f"'{folder_id}' in parents and trashed = false"
        if names is not None:
            query = f"{query} and ({' or '.join(f'name = {_quoted(name)}' for name in names)})"
        wanted = {
            "q": query, "fields": f"nextPageToken,files({FIELDS})", "pageSize": str(_PAGE),
            "includeItemsFromAllDrives": "true",
        }  # fmt: skip
        while True:
            page = self._json("list a folder", "GET", "/drive/v3/files", **wanted)
            yield from page["files"]
            if not page.get("nextPageToken"):
                return
            wanted["pageToken"] = page["nextPageToken"]

    def make_folder(self, name: str, parent_id: str) -> File:
        """Make a folder. Two of the same name may be in one."""
        folder = {"name": name, "parents": [parent_id], "mimeType": FOLDER}
        return self._once("make a folder", "/drive/v3/files", folder)

    def copy(self, file_id: str, name: str, parent_id: str) -> File:
        """Make a file with the content of another."""
        return self._once(
            "copy a file", f"/drive/v3/files/{file_id}/copy", {"name": name, "parents": [parent_id]}
        )

    def trash(self, file_id: str) -> None:
        """Move something to the trash, from which its owner can take it back for 30 days."""
        self._json(
            "delete a file",
            "PATCH",
            f"/drive/v3/files/{file_id}",
            body={"trashed": True},
            fields="id",
        )

    def download(
        self, file_id: str, revision: str, offset: int, length: int, *, md5: str = ""
    ) -> View:
        """Return part of a file, of this revision or the newest; fewer bytes where it ends.

        Args:
            md5: Of all of it, where that is known.
        """

        def attempt(this: Attempt) -> View:
            version = f"/revisions/{revision}" if revision else ""
            path = f"/drive/v3/files/{file_id}{version}?alt=media"
            wanted = {
                "Range": f"bytes={offset}-{offset + length - 1}",
                "Accept-Encoding": "identity",
            }
            try:
                reply = self._ask(this, "GET", path, headers=wanted, stream=True)
            except FAILURES as error:
                if status_of(error) == 416:  # it begins past the end
                    return b""
                raise
            with reply:
                content, is_whole = receive_answer(reply, offset, length, this)
            if is_whole and md5 not in (
                "",
                hashlib.md5(content, usedforsecurity=False).hexdigest(),
            ):
                raise Again(ObjectStoreFailed("a file arrived with a wrong checksum"))
            return content

        return self._try("read a file", attempt, size=min(length, _READ_MAX))

    def export(self, file_id: str, mime_type: str) -> bytes:
        """Return a document of Google's in another format; 10 MB at most."""

        def attempt(this: Attempt) -> bytes:
            path = f"/drive/v3/files/{file_id}/export"
            return self._ask(this, "GET", path, params={"mimeType": mime_type}).content

        return self._try("export a document", attempt)

    def create(self, name: str, parent_id: str, content: Content) -> File:
        """Make a file in a folder. Two of the same name may be in one."""
        metadata = {"name": name, "parents": [parent_id]}
        if content.size:
            return self._upload("POST", "", metadata | {"id": self._new_id()}, content)
        return self._once("make a file", "/drive/v3/files", metadata | {"mimeType": _ANY})

    def update(self, file_id: str, content: Content) -> File:
        """Give a file new content."""
        if content.size:
            return self._upload("PATCH", f"/{file_id}", {}, content)
        path = f"/upload/drive/v3/files/{file_id}"
        emptied: File = self._json("store a file", "PATCH", path, uploadType="media", fields=FIELDS)
        return emptied

    def changes_end(self) -> str:
        """Return the position after all changes so far."""
        found = self._json("follow changes", "GET", "/drive/v3/changes/startPageToken")
        return str(found["startPageToken"])

    def count_changes(self, position: str) -> tuple[int, str]:
        """Return how many changes came after a position, anywhere, and the next position."""
        wanted = {
            "fields": "nextPageToken,newStartPageToken,changes(fileId)", "pageSize": str(_PAGE),
            "includeItemsFromAllDrives": "true",
        }  # fmt: skip
        count = 0
        while True:
            page = self._json(
                "follow changes", "GET", "/drive/v3/changes", pageToken=position, **wanted
            )
            count += len(page["changes"])
            if "newStartPageToken" in page:
                return count, str(page["newStartPageToken"])
            position = page["nextPageToken"]

    def close(self) -> None:
        self._try.close()
        self._http.close()

    def _once(self, doing: str, path: str, body: Mapping[str, Any]) -> File:
        """Make something under an id of ours, so that a lost answer makes no second one."""
        new_id = self._new_id()

        def attempt(this: Attempt) -> File:
            try:
                reply = self._ask(
                    this, "POST", path, params={"fields": FIELDS}, json={"id": new_id, **body}
                )
            except FAILURES as error:
                if not this.number or status_of(error) != 409:
                    raise
                made_path = f"/drive/v3/files/{new_id}"
                reply = self._ask(this, "GET", made_path, params={"fields": FIELDS})
            made: File = reply.json()
            return made

        return self._try(doing, attempt)

    def _upload(
        self, method: str, path: str, metadata: Mapping[str, Any], content: Content
    ) -> File:
        def begin(this: Attempt) -> str:
            reply = self._ask(
                this, method, f"/upload/drive/v3/files{path}",
                params={"uploadType": "resumable", "fields": FIELDS}, json=metadata,
                headers={
                    "X-Upload-Content-Type": _ANY, "X-Upload-Content-Length": str(content.size)
                },
            )  # fmt: skip
            return str(reply.headers["Location"])

        upload = Upload(self._http, self._try("store a file", begin), content.size)
        try:
            while upload.made is None:
                length = min(_PIECE_BYTES, content.size - upload.stored)
                piece = Slice(content, upload.stored, length)
                self._try("store a file", partial(upload.send, piece), size=length)
        finally:
            if upload.made is None:
                with suppress(BackendError):
                    self._try("abort an upload", upload.abort)
        return upload.made

    def _new_id(self) -> str:
        if not self._ids:
            self._ids = self._json(
                "make ids", "GET", "/drive/v3/files/generateIds", count=str(_IDS)
            )["ids"]
        return self._ids.pop()

    def _json(
        self, doing: str, method: str, path: str, *, body: object = None, **params: str
    ) -> Any:
        return self._try(
            doing, lambda this: self._ask(this, method, path, params=params, json=body).json()
        )

    def _ask(
        self, this: Attempt, method: str, path: str, *, params: Mapping[str, str] | None = None,
        **more: Any,
    ) -> requests.Response:  # fmt: skip
        wanted = {"supportsAllDrives": "true", **(params or {})}
        reply: requests.Response = self._http.request(
            method, f"{self._endpoint}{path}", params=wanted,
            timeout=(this.wait_s(), this.wait_s()), **more,
        )  # fmt: skip
        if not reply.ok:
            with reply:
                raise from_http_response(reply)
        return reply


def _quoted(name: str) -> str:
    """Source: Search query terms and operators (Drive documentation)."""
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
