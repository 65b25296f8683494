"""A small Google Drive: files and changes of API v3.

Shapes and statuses are those of the API's public reference. It keeps everything in memory, and is
strict where the real one is: unknown parameters, fields and queries are errors.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from google.auth import jwt

FOLDER = "application/vnd.google-apps.folder"
PAGE = 7
"""A page may be shorter than was asked for, and not the last one."""
ACCOUNT = "nexus@tests.example"
_NAME = r"name = '((?:[^'\\]|\\.)*)'"
_QUERY = re.compile(
    rf"'([\w-]+)' in parents and trashed = false(?: and \(({_NAME}(?: or {_NAME})*)\))?"
)


@dataclass
class Item:
    id: str
    name: str
    parents: list[str]
    mime_type: str
    created: str
    modified: str
    version: int
    revisions: list[bytes] = field(default_factory=list)
    trashed: bool = False

    def describe(self) -> dict[str, Any]:
        """Source: REST Resource: files."""
        described = {
            "kind": "drive#file", "id": self.id, "name": self.name, "mimeType": self.mime_type,
            "parents": self.parents, "createdTime": self.created, "modifiedTime": self.modified,
            "version": str(self.version), "trashed": self.trashed,
        }  # fmt: skip
        if not self.mime_type.startswith("application/vnd.google-apps."):
            content = self.revisions[-1]
            described |= {
                "size": str(len(content)),
                "md5Checksum": hashlib.md5(content).hexdigest(),
                "headRevisionId": f"{self.id}-{len(self.revisions)}",
            }
        return described


class Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class FakeDrive:
    """Files by id; ``root`` is a folder."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.items: dict[str, Item] = {}
        self.changes: list[str] = []
        """Ids, each as often as it changed."""
        self.sessions: dict[str, tuple[Item, bytearray, int]] = {}
        self.requests: list[str] = []
        self._numbers = itertools.count(1)
        handler = type("Handler", (_Handler,), {"drive": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.root = self.add("My Drive", [], FOLDER).id

    def add(
        self, name: str, parents: list[str], mime_type: str, content: bytes = b"", item_id: str = ""
    ) -> Item:
        with self.lock:
            now = _now()
            item = Item(item_id or self.new_id(), name, parents, mime_type, now, now, 1, [content])
            if item.id in self.items:
                raise Refused(409, "fileIdInUse")
            self.items[item.id] = item
            self.changes.append(item.id)
            return item

    def touch(self, item: Item) -> None:
        item.version += 1
        item.modified = _now()
        self.changes.append(item.id)

    def get(self, item_id: str) -> Item:
        if item_id not in self.items:
            raise Refused(404, "notFound")
        return self.items[item_id]

    def new_id(self) -> str:
        return f"id_{next(self._numbers):012}"

    @contextmanager
    def running(self) -> Iterator[FakeDrive]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    drive: FakeDrive

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.drive.requests.append(f"{self.command} {self.path}")
        try:
            with self.drive.lock:
                self._route(f"{self.command} {parts.path}")
        except Refused as refused:
            error = {
                "code": refused.status, "message": f"{refused.reason}!",
                "errors": [{"domain": "global", "reason": refused.reason}],
            }  # fmt: skip
            self._send(refused.status, json.dumps({"error": error}).encode())

    do_DELETE = do_GET = do_PATCH = do_POST = do_PUT = handle_any

    def _route(self, request: str) -> None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or jwt.decode(token, verify=False)["iss"] != ACCOUNT:
            raise Refused(401, "authError")
        for pattern, answer_to in _ROUTES:
            if found := re.fullmatch(pattern, request):
                answer_to(self, *found.groups())
                return
        raise Refused(404, "notFound")

    def list_files(self) -> None:
        asked = _QUERY.fullmatch(self.query["q"])
        if not asked:
            raise Refused(400, "invalid")
        self.drive.get(asked[1])
        names = {re.sub(r"\\(.)", r"\1", name) for name in re.findall(_NAME, asked[2] or "")}
        found = [
            item
            for item in self.drive.items.values()
            if asked[1] in item.parents and not item.trashed and (not names or item.name in names)
        ]
        begin = int(self.query.get("pageToken", 0))
        size = min(PAGE, int(self.query["pageSize"]))
        page: dict[str, Any] = {"files": [self._pick(item) for item in found[begin : begin + size]]}
        if begin + size < len(found):
            page["nextPageToken"] = str(begin + size)
        self._send_json(page)

    def get_file(self, item_id: str) -> None:
        item = self.drive.get(item_id)
        if self.query.get("alt") == "media":
            if item.mime_type.startswith("application/vnd.google-apps."):
                raise Refused(403, "fileNotDownloadable")
            return self._send_range(item.revisions[-1])
        return self._send_json(self._pick(item))

    def get_revision(self, item_id: str, number: str) -> None:
        revisions = self.drive.get(item_id).revisions
        if self.query.get("alt") != "media" or not 1 <= int(number) <= len(revisions):
            raise Refused(404, "notFound")
        self._send_range(revisions[int(number) - 1])

    def export(self, item_id: str) -> None:
        item = self.drive.get(item_id)
        if not item.mime_type.startswith("application/vnd.google-apps."):
            raise Refused(403, "fileNotExportable")
        self._send(200, self.query["mimeType"].encode() + b": " + item.revisions[-1])

    def generate_ids(self) -> None:
        self._send_json({"ids": [self.drive.new_id() for _ in range(int(self.query["count"]))]})

    def make(self) -> None:
        given = json.loads(self.body)
        for parent in given["parents"]:
            self.drive.get(parent)
        item = self.drive.add(
            given["name"], given["parents"], given["mimeType"], b"", given.get("id", "")
        )
        self._send_json(self._pick(item))

    def copy(self, item_id: str) -> None:
        item, given = self.drive.get(item_id), json.loads(self.body)
        copied = self.drive.add(
            given["name"], given["parents"], item.mime_type, item.revisions[-1], given.get("id", "")
        )
        self._send_json(self._pick(copied))

    def change(self, item_id: str) -> None:
        item, given = self.drive.get(item_id), json.loads(self.body)
        item.trashed = given.get("trashed", item.trashed)
        item.name = given.get("name", item.name)
        self.drive.touch(item)
        self._send_json(self._pick(item))

    def upload(self, item_id: str | None = None) -> None:
        if self.query["uploadType"] == "media" and item_id:
            item = self.drive.get(item_id)
            item.revisions.append(self.body)
            self.drive.touch(item)
            return self._send_json(self._pick(item))
        if self.query["uploadType"] != "resumable":
            raise Refused(400, "invalid")
        given, now = json.loads(self.body), _now()
        if item_id:
            item = self.drive.get(item_id)
        else:
            if given.get("id") in self.drive.items:
                raise Refused(409, "fileIdInUse")
            mime_type = self.headers["X-Upload-Content-Type"]
            item = Item(given["id"], given["name"], given["parents"], mime_type, now, now, 0)
        session = f"/session/{self.drive.new_id()}"
        size = int(self.headers["X-Upload-Content-Length"])
        self.drive.sessions[session] = (item, bytearray(), size)
        return self._send(
            200, b"", Location=f"{self.drive.endpoint}{session}?{urlsplit(self.path).query}"
        )

    def send(self, session: str) -> None:
        if session not in self.drive.sessions:
            raise Refused(404, "notFound")
        item, held, size = self.drive.sessions[session]
        said = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)", self.headers["Content-Range"])
        if not said or int(said[3]) != size or (said[1] and int(said[1]) != len(held)):
            raise Refused(400, "invalid")
        held += self.body
        if len(held) < size:
            known = {"Range": f"bytes=0-{len(held) - 1}"} if held else {}
            return self._send(308, b"", **known)
        if self.body:
            item.revisions.append(bytes(held))
            self.drive.items[item.id] = item
            self.drive.touch(item)
        return self._send_json(self._pick(item))

    def forget(self, session: str) -> None:
        self.drive.sessions.pop(session, None)
        self._send(499, b"")

    def start_page(self) -> None:
        self._send_json({"startPageToken": str(len(self.drive.changes))})

    def list_changes(self) -> None:
        begin, size = int(self.query["pageToken"]), min(PAGE, int(self.query["pageSize"]))
        ids = self.drive.changes[begin : begin + size]
        changes = [
            {
                "kind": "drive#change", "changeType": "file", "fileId": item_id,
                "removed": False, "file": self.drive.items[item_id].describe(),
            }
            for item_id in ids
        ]  # fmt: skip
        page: dict[str, Any] = {"changes": changes}
        if begin + size < len(self.drive.changes):
            page["nextPageToken"] = str(begin + size)
        else:
            page["newStartPageToken"] = str(len(self.drive.changes))
        self._send_json(page)

    def _pick(self, item: Item) -> dict[str, Any]:
        """Return the fields that were asked for, and no others."""
        asked = re.search(r"files\((.*)\)", self.query["fields"])
        names = (asked[1] if asked else self.query["fields"]).split(",")
        described = item.describe()
        return {name: described[name] for name in names if name in described}

    def _send_range(self, content: bytes) -> None:
        said = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not said:
            return self._send(200, content)
        first, last = int(said[1]), min(int(said[2]), len(content) - 1)
        if first >= len(content):
            return self._send(416, b"")
        part = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return self._send(206, content[first : last + 1], **part)

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests look at `FakeDrive.requests`."""


_FILES = "/drive/v3/files"
_ROUTES: list[tuple[str, Any]] = [
    (rf"GET {_FILES}", _Handler.list_files),
    (rf"GET {_FILES}/generateIds", _Handler.generate_ids),
    (rf"GET {_FILES}/([\w-]+)", _Handler.get_file),
    (rf"GET {_FILES}/([\w-]+)/export", _Handler.export),
    (rf"GET {_FILES}/([\w-]+)/revisions/[\w]+-(\d+)", _Handler.get_revision),
    (rf"POST {_FILES}", _Handler.make),
    (rf"POST {_FILES}/([\w-]+)/copy", _Handler.copy),
    (rf"PATCH {_FILES}/([\w-]+)", _Handler.change),
    (rf"POST /upload{_FILES}", _Handler.upload),
    (rf"PATCH /upload{_FILES}/([\w-]+)", _Handler.upload),
    (r"PUT (/session/\w+)", _Handler.send),
    (r"DELETE (/session/\w+)", _Handler.forget),
    (r"GET /drive/v3/changes/startPageToken", _Handler.start_page),
    (r"GET /drive/v3/changes", _Handler.list_changes),
]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
