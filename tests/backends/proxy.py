"""A reverse proxy that counts requests, and does to some of them what networks do."""

from __future__ import annotations

import http.client
import random
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal[
    "slow down",  # 503, and nothing is asked of the server
    "never arrive",  # the connection ends before the server was asked
    "lose the answer",  # the server did it, and the connection ends
    "keep silent",  # no answer, until the proxy ends
    "cut the body",  # the connection ends in the middle of the body
    "shorten the body",  # by half, and so does Content-Length
    "damage the body",  # a byte of it is another
    "damage the request",  # a byte of its body is
    "cut the request",  # the connection ends in the middle of its body
    "trickle",  # a byte of the body now and then
]
_SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "transfer-encoding", "content-length", "expect")
)
_TRICKLE_S = 0.2


@dataclass
class Rule:
    fault: Fault
    pattern: str
    """Of ``METHOD /path?query``."""
    skip: int
    times: int
    headers: dict[str, str] = field(default_factory=dict)


class Proxy:
    """Stands between clients and ``upstream``, such as ``http://127.0.0.1:8333``."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.requests: list[str] = []
        """All that came, as ``METHOD /path?query``."""
        self.answered: list[tuple[str, int]] = []
        """Those that the server answered, and how long the body of its answer was."""
        self.headers: Message = Message()
        """Of the last one."""
        self.ended = threading.Event()
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        """What the server last said of each upload session of Google Cloud Storage."""
        self._rules: list[Rule] = []
        self._by_chance: tuple[Sequence[Fault], float, random.Random] | None = None
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(
        self, fault: Fault, pattern: str = "", *, skip: int = 0, times: int = 1 << 30,
        **headers: str,
    ) -> None:  # fmt: skip
        """Do this to requests that match.

        Args:
            skip: So many of them go through before.
            headers: Of the answer that says "slow down"; an underscore stands for a hyphen.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with self._lock:
            self._rules.append(Rule(fault, pattern, skip, times, named))

    def fail_at_random(self, faults: Sequence[Fault], share: float, rng: random.Random) -> None:
        """Do one of these to each request, by chance, until `mend`."""
        with self._lock:
            self._by_chance = (faults, share, rng)

    def mend(self) -> None:
        """Let everything through from now on."""
        with self._lock:
            self._rules.clear()
            self._by_chance = None

    def count(self, pattern: str = "") -> int:
        """Return how many requests came that match."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def bytes_answered(self, pattern: str = "") -> int:
        """Return how many bytes of bodies answered requests that match."""
        return sum(size for request, size in self.answered if re.search(pattern, request))

    def note(self, request: str) -> Rule | None:
        """Count a request; return what is to be done to it."""
        with self._lock:
            self.requests.append(request)
            for rule in self._rules:
                if not rule.times or not re.search(rule.pattern, request):
                    continue
                if not rule.skip:
                    rule.times -= 1
                    return rule
                rule.skip -= 1
            if self._by_chance is not None:
                faults, share, rng = self._by_chance
                if rng.random() < share:
                    return Rule(rng.choice(faults), "", 0, 1)
        return None

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_any(self) -> None:
        rule = self.proxy.note(f"{self.command} {self.path}")
        self.proxy.headers = self.headers
        fault = rule.fault if rule else None
        if fault == "never arrive":
            self.close_connection = True
            return
        if fault == "keep silent":
            self.proxy.ended.wait()
            self.close_connection = True
            return
        length = int(self.headers.get("Content-Length", 0))
        if fault == "cut the request":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        request = self.rfile.read(length)
        if fault == "damage the request":
            request = _damaged(request, len(request) // 2)
        if rule and fault == "slow down":
            self._reply(503, rule.headers, _SLOW_DOWN)
            return
        if self.headers.get("Content-Range", "").startswith("bytes */"):
            # How far is it? fake-gcs-server takes that for the end of the upload, so that the
            # answer is ours. Source: Resumable uploads (Cloud Storage documentation).
            status, headers, body = self.proxy.answers.get(self.path, (308, {}, b""))
        else:
            status, headers, body = self._ask(request)
            self.proxy.answers[self.path] = (status, headers, body)
            self.proxy.answered.append((f"{self.command} {self.path}", len(body)))
        if fault == "lose the answer":
            self.close_connection = True
            return
        self._reply(status, headers, body, fault)

    do_DELETE = do_GET = do_HEAD = do_PATCH = do_POST = do_PUT = handle_any

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            # The client's own Host too: it has signed it.
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            if "Location" in kept:
                kept["Location"] = kept["Location"].replace(
                    f"http://{self.proxy.upstream}", self.proxy.endpoint
                )
            if self.command == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length", "0")
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _reply(
        self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None
    ) -> None:
        if fault == "shorten the body":
            body = body[: len(body) // 2]
        if fault == "damage the body":
            body = _damaged(body, len(body) - 1)
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers and status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut the body":
            body = body[: len(body) // 2]
            self.close_connection = True
        if fault == "trickle":
            self.close_connection = True
            for at in range(len(body)):
                if self.proxy.ended.wait(_TRICKLE_S):
                    return
                self.wfile.write(body[at : at + 1])
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests look at `Proxy.requests`."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client gave up


def _damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
