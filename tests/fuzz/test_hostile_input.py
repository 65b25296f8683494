"""What comes from outside is refused in words of ours: no traceback, no code, no way out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path as FilePath

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nexus_engine import commands, errors
from nexus_engine.cas.codec import CODEC_ZSTD, MAX_CHUNK, decode
from nexus_engine.cas.pack import RecordScan, encode_pack_header, encode_record, intent_record
from nexus_engine.check.fsck import check
from nexus_engine.commands import Request, ignore_progress
from nexus_engine.commands.verbs import VERBS
from nexus_engine.config import CONFIG_NAME, load_config
from nexus_engine.engine import Engine
from nexus_engine.fs import namespace
from nexus_engine.fs.files import Intent
from nexus_engine.history.moments import resolve_moment
from nexus_engine.store import Store
from nexus_engine.types import ROOT_INO, Actor, Digest, Name, Path, agent_name
from nexusfuse.ctl import control, grammar, render

ACTOR = Actor(0, 0, 1, command="fuzz")
BRIEF = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

anything = st.text(st.characters(), max_size=40)  # surrogates and control characters included
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    anything,
    st.lists(st.integers(), max_size=3),
)
arguments = st.dictionaries(
    st.sampled_from(
        "path moment since until limit last operations agent pid session kind force dry_run to"
        " exact name key value digest deep before after".split()
    ),
    scalars,
    max_size=4,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    path = tmp_path_factory.mktemp("fuzz") / "store"
    Store.create(path, ACTOR).close()
    opened = Store.open(path)
    yield opened
    assert check(opened, deep=True) == []
    opened.close()


@BRIEF
@given(verb=st.sampled_from(sorted(VERBS)), args=arguments)
@example(verb="log", args={"agent": "\ud800"})
@example(verb="undo", args={"agent": "\ud800"})
@example(verb="log", args={"since": "\ud800"})
@example(verb="tag-set", args={"path": "", "key": "\ud800", "value": ""})
def test_any_arguments_are_carried_out_or_refused(
    store: Store, verb: str, args: dict[str, object]
) -> None:
    with suppress(errors.EngineError):
        reply = commands.execute(store, Request(verb, args), ACTOR, ignore_progress)
        assert control.encode_reply(reply).isascii()
        assert render.render(Request(verb, args), reply).replace("\n", "").isprintable()


@BRIEF
@given(line=st.one_of(st.binary(max_size=200), anything.map(lambda t: t.encode(errors="replace"))))
@example(line=b"[" * 100_000)
@example(line=b'{"verb":"log","args":{"limit":' + b"9" * 5000 + b"}}")
def test_any_line_is_a_command_or_refused(store: Store, line: bytes) -> None:
    """As `control` takes them."""
    text = line.decode(errors="surrogateescape").strip()
    with suppress(errors.EngineError):
        if text.startswith("{"):
            control.decode_request(text)
        else:
            request, _ = grammar.parse(text, Path(b""))
            commands.execute(store, request, ACTOR, ignore_progress)


@BRIEF
@given(
    text=st.one_of(
        anything, st.from_regex(r"(op-|before-op-)?[0-9²٣]{1,30}[smhdwy]?", fullmatch=True)
    )
)
@example(text="99999999999999y")
@example(text="9999-12-31T23:59:60+99:99")
@example(text="\ud800")
def test_any_text_is_a_moment_or_refused(store: Store, text: str) -> None:
    """As a name in `history` is."""
    with suppress(errors.InvalidMoment, errors.HistoryExpired):
        resolve_moment(store.database, text, 1_800_000_000 * 10**9)


@BRIEF
@given(content=st.binary(max_size=300), flips=st.lists(st.integers(0, 10**6), max_size=4))
def test_a_pack_of_flipped_bits_gives_what_is_whole_and_nothing_else(
    content: bytes, flips: list[int]
) -> None:
    pack = bytearray(encode_pack_header("0" * 32))
    begin = len(pack)
    for part in (content, content * 2):
        pack += encode_record(1, 0, len(part), Digest(os.urandom(32)), part)
    whole = bytes(pack)
    for flip in flips:
        at = begin + flip % (len(pack) - begin)
        pack[at] ^= 1 << flip % 8
    found = list(RecordScan(lambda offset, length: bytes(pack[offset : offset + length])))
    assert all(bytes(r.payload) in (content, content * 2) for r in found)
    if pack == whole:
        assert len(found) == 2


@BRIEF
@given(garbage=st.binary(max_size=400))
def test_garbage_after_a_pack_header_is_no_record(garbage: bytes) -> None:
    pack = encode_pack_header("0" * 32) + garbage
    assert list(RecordScan(lambda offset, length: pack[offset : offset + length])) == []


@pytest.mark.parametrize("length", [0, 100, MAX_CHUNK, MAX_CHUNK + 1])
def test_a_bomb_is_refused_before_it_goes_off(length: int) -> None:
    """Decoded content is at most 4 MiB, and as long as the record says."""
    bomb = zstandard.ZstdCompressor().compress(bytes(256 << 20))
    with pytest.raises(errors.CorruptChunk):
        decode(CODEC_ZSTD, bomb, length)


numbers = st.integers(-(2**63), 2**64 - 1)
encodable = anything.map(lambda text: text.encode(errors="replace").decode())
intents = st.tuples(
    numbers, st.binary(max_size=9), numbers, numbers, numbers, numbers,
    st.none() | numbers, numbers, numbers,
    st.tuples(numbers, numbers, numbers, numbers, encodable, numbers, st.just("a"), st.just("")),
    st.lists(st.tuples(numbers, numbers, st.binary(max_size=33), numbers), max_size=3),
)  # fmt: skip


@settings(BRIEF, max_examples=25)
@given(intent=intents, garbage=st.binary(max_size=40))
@example(
    intent=(1, b"s" * 8, 1, 0, 2, 0, None, 2**64 - 1, 0, (0,) * 4 + ("c", 0, "", ""), []),
    garbage=b"",
)
def test_the_pack_of_a_dead_process_is_recovered_whatever_it_says(
    tmp_path: FilePath, intent: tuple[object, ...], garbage: bytes
) -> None:
    """An intent that cannot be meant is left alone; the store opens."""
    path = tmp_path / os.urandom(8).hex()
    Store.create(path, ACTOR).close()
    dead = Store.open(path)
    made = commands_file(dead)
    plausible = (*intent[:4], made, *intent[5:])
    for payload in (msgspec.msgpack.encode(intent), msgspec.msgpack.encode(plausible), garbage):
        dead.chunks.put_intent(payload)
    dead.abandon()
    opened = Engine.start(path)
    assert check(opened.store) == []
    opened.store.close()


def commands_file(store: Store) -> int:
    """Make a file; return its number."""
    mode = stat.S_IFREG | 0o644
    inode = store.transact(
        namespace.make, ACTOR, ROOT_INO, Name(b"f"), mode, rdev=0, target=None, before_umask=None
    )
    return int(inode.ino)


@BRIEF
@given(text=st.one_of(st.binary(max_size=200), anything.map(lambda t: t.encode(errors="replace"))))
@example(text=b"\xff\xfe")
@example(text=b"[" * 5000)
@example(text=b"a: 2001-99-99")
@example(text=b"!!python/object/apply:os.system ['exit 1']")
@example(text=b"a: &a [x]\nb: &b [" + b"*a," * 1000 + b"]\nc: [" + b"*b," * 1000 + b"]")
@example(text=b"retention: {keep_all: 1d, classes: " + b"x" * 70000 + b"}")
def test_any_settings_are_read_or_refused(tmp_path: FilePath, text: bytes) -> None:
    (tmp_path / CONFIG_NAME).write_bytes(text)
    with suppress(errors.InvalidArgument):
        load_config(tmp_path)


@BRIEF
@given(said=st.binary(max_size=2000))
def test_what_an_agent_calls_itself_is_bounded_text(said: bytes) -> None:
    name = agent_name(said)
    assert len(name) <= 255
    assert len(name.encode()) <= 4 * 255
    assert render.printable(name).isprintable()


def test_an_intent_says_what_it_says() -> None:
    """What the tests above make up is what recovery reads."""
    assert Intent.__struct_fields__[4] == "ino"
    assert intent_record(b"x")
