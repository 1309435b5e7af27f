"""Two sessions joined back to back: handshake, calls, streams with credit, deadlines, and every reason to end."""

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from wire import WAYS, closed_of, frame

from workerlib.core import frames
from workerlib.core.client_session import ClientSession
from workerlib.core.frames import Frame
from workerlib.core.payload import encode
from workerlib.core.session import (
    DIALECT,
    MAX_SEQ,
    Closed,
    CloseKind,
    ServerSession,
    State,
    count_items,
    parse_dialect,
)
from workerlib.errors import ConnectionLost, ProtocolError, UsageError
from workerlib.shell.compression import inflate
from workerlib.testing.sessions import SETTINGS, SessionPair, byte_by_byte, whole

NIL = b"\xc0"
HELLO = frame(frames.CONNECT, encode({"object": "w", "handshake": "hello"}), seq=0)
WINDOW = SETTINGS.stream_window


def items(*values: object) -> bytes:
    return encode(list(values))


def server(*, dialect: bool = True, now: float = 0.0) -> ServerSession:
    """A server's session after the handshake."""
    session = ServerSession(SETTINGS, inflate, now)
    (hello,) = session.receive(HELLO, now)
    assert isinstance(hello, Frame)
    session.accept(hello, NIL, {"workerlib": DIALECT, "window": WINDOW} if dialect else None, now)
    return session


def client(now: float = 0.0) -> ClientSession:
    """A client's session after the handshake."""
    session = ClientSession(SETTINGS, inflate, now)
    session.connect("w", None)
    session.receive(frame(frames.CONNECT_OK, NIL, seq=0), now)
    session.opened({"workerlib": DIALECT, "window": WINDOW}, now)
    return session


# The whole way, however it is cut


@pytest.mark.parametrize("way", [whole, byte_by_byte])
def test_a_call_travels_there_and_back(way) -> None:
    """Handshake, call, result: the same events however the bytes are cut."""
    pair = SessionPair(connect=False)
    pair.to_server += pair.client.connect("w", 5)
    pair.deliver(way)
    hello = pair.take_at_server()
    assert hello.type == frames.CONNECT
    pair.to_client += pair.accept(hello)
    pair.deliver(way)
    pair.greet(pair.take_at_client())
    seq, data = pair.client.call(b"payload")
    pair.to_server += data
    pair.deliver(way)
    assert pair.take_at_server() == Frame(frames.INVOKE, 4, 0, seq, b"payload")
    pair.to_client += pair.server.result(seq, b"result")
    pair.deliver(way)
    assert pair.take_at_client() == Frame(frames.RESULT, 4, 0, seq, b"result")
    assert pair.ends() == (None, None)


def test_answers_may_come_in_any_order() -> None:
    """Results are matched by sequence number, not by order."""
    pair = SessionPair()
    seqs = [pair.call()[0] for _ in range(5)]
    for seq in reversed(seqs):
        pair.to_client += pair.server.result(seq, bytes([seq]))
    pair.deliver()
    assert [event.seq for event in pair.at_client] == seqs[::-1]
    assert pair.ends() == (None, None)


def test_a_one_way_call_keeps_no_number() -> None:
    """It gets no answer, so its number is free at once; an answer to it is a protocol error."""
    pair = SessionPair()
    pair.to_server += pair.client.call_one_way(b"x")
    pair.deliver()
    sent = pair.take_at_server()
    assert sent.flags == frames.ONE_WAY
    pair.to_client += pair.server.result(sent.seq, NIL)
    pair.deliver()
    assert pair.ends() == (CloseKind.PROTOCOL, None)


def test_pings_are_answered_by_the_session_itself() -> None:
    """A ping of either kind comes back as "pong" with its own number and serializer, and is no event."""
    session = server(dialect=False)
    assert session.receive(frame(frames.PING, b"ping", seq=9, serializer=42), 0) == []
    assert session.take_output() == frame(frames.PING, b"pong", seq=9, serializer=42)
    assert session.take_output() == b""


def test_a_pong_is_an_event_and_is_not_answered() -> None:
    """Else two ends would play for ever."""
    pair = SessionPair()
    seq, data = pair.client.ping()
    pair.to_server += data
    pair.deliver()
    assert pair.take_at_client() == Frame(frames.PING, 4, 0, seq, b"pong")
    assert not pair.at_server


# Handshake


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", sorted(frames.TYPES - {frames.CONNECT}))
def test_nothing_may_come_before_connect(kind: int, way: str) -> None:
    """Any other message first ends the connection."""
    session = ServerSession(SETTINGS, inflate, 0)
    events = [event for piece in WAYS[way](frame(kind, NIL)) for event in session.receive(piece, 0)]
    assert [event.kind for event in closed_of(events)] == [CloseKind.PROTOCOL]


@pytest.mark.parametrize("kind", [frames.CONNECT, frames.INVOKE, frames.PING])
def test_nothing_may_come_while_the_server_considers(kind: int) -> None:
    """A client waits for the answer to CONNECT."""
    session = ServerSession(SETTINGS, inflate, 0)
    assert len(session.receive(HELLO, 0)) == 1
    (closed,) = session.receive(frame(kind, NIL), 0)
    assert str(closed) == f"protocol error: message type {kind:#x} before the handshake was over"


@pytest.mark.parametrize("kind", sorted(frames.TYPES - {frames.CONNECT_OK, frames.CONNECT_FAIL}))
def test_a_server_answers_connect_first(kind: int) -> None:
    """Anything before CONNECT_OK or CONNECT_FAIL ends the connection."""
    session = ClientSession(SETTINGS, inflate, 0)
    session.connect("w", None)
    (closed,) = session.receive(frame(kind, NIL), 0)
    assert isinstance(closed, Closed)
    assert closed.kind is CloseKind.PROTOCOL


def test_a_server_may_beat_as_soon_as_it_has_accepted() -> None:
    """Its heartbeat may come in one read with CONNECT_OK, before the shell has called `opened`."""
    session = ClientSession(SETTINGS, inflate, 0)
    session.connect("w", None)
    events = session.receive(frame(frames.CONNECT_OK, NIL, seq=0) + frame(frames.PING, b"ping", seq=0), 0)
    assert [event.type for event in events] == [frames.CONNECT_OK]
    assert session.take_output() == frame(frames.PING, b"pong", seq=0)


def test_a_second_connect_ok_is_refused() -> None:
    """The handshake happens once."""
    session = ClientSession(SETTINGS, inflate, 0)
    session.connect("w", None)
    events = session.receive(frame(frames.CONNECT_OK, NIL, seq=0) * 2, 0)
    assert [event.kind for event in closed_of(events)] == [CloseKind.PROTOCOL]


def test_a_rejection_closes_and_says_why() -> None:
    """The server's session is closed by `reject`, with the reason; the client reads CONNECT_FAIL."""
    pair = SessionPair(connect=False)
    pair.to_server += pair.client.connect("w", None)
    pair.deliver()
    pair.to_client += pair.server.reject(pair.take_at_server(), encode("no"), "no such object")
    pair.deliver()
    assert pair.take_at_client() == Frame(frames.CONNECT_FAIL, 4, 0, 0, encode("no"))
    assert pair.ends() == (None, CloseKind.REJECTED)
    assert str(pair.server.closed) == "rejected in the handshake: no such object"


@pytest.mark.parametrize("end", [ServerSession, ClientSession])
@pytest.mark.parametrize("sent", [b"", HELLO[:20]], ids=["nothing", "half a header"])
def test_a_handshake_has_a_deadline(end: type, sent: bytes) -> None:
    """A peer that never ends its handshake is cut off at the deadline, and not before."""
    session = end(SETTINGS, inflate, 100)
    assert session.receive(sent, 100) == []
    limit = SETTINGS.handshake_timeout_s if not sent else min(SETTINGS.handshake_timeout_s, SETTINGS.frame_timeout_s)
    assert session.deadline_at == pytest.approx(100 + limit, abs=0.01)
    assert session.tick(session.deadline_at - 0.001) == []
    (closed,) = session.tick(session.deadline_at)
    assert closed.kind is (CloseKind.FRAME_TIMEOUT if sent else CloseKind.HANDSHAKE_TIMEOUT)


def test_a_handshake_deadline_also_bounds_the_servers_own_consideration() -> None:
    """A `connected` that never returns does not keep its client for ever."""
    session = ServerSession(SETTINGS, inflate, 0)
    session.receive(HELLO, 4)
    assert session.deadline_at == 5
    assert session.tick(5)[0] == Closed(CloseKind.HANDSHAKE_TIMEOUT, "5 s")


# The dialect


@pytest.mark.parametrize("kind", [frames.ITEM, frames.END, frames.CREDIT, frames.ABORT])
def test_a_stock_peer_may_not_use_the_dialect(kind: int) -> None:
    """Message types from 0x41 up are for those who announced them."""
    (closed,) = server(dialect=False).receive(frame(kind, NIL), 0)
    assert str(closed) == f"protocol error: message type {kind:#x} from a peer that did not announce the dialect"


def test_a_stock_peer_has_no_heartbeat() -> None:
    """A stock client answers no pings while it waits for nothing; it may be silent for ever."""
    assert server(dialect=False).deadline_at == float("inf")


@pytest.mark.parametrize("value", [None, "hello", 5, [], {}, {"other": 1}])
def test_other_handshake_values_are_those_of_stock_peers(value: object) -> None:
    """Only a dictionary with the key "workerlib" announces the dialect."""
    assert parse_dialect(value) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"workerlib": 2, "window": 1}, "dialect 2, this side 1"),
        ({"workerlib": "1", "window": 1}, "dialect '1'"),
        ({"workerlib": 1}, "a stream window of None items"),
        ({"workerlib": 1, "window": 0}, "a stream window of 0 items"),
        ({"workerlib": 1, "window": -5}, "a stream window of -5 items"),
        ({"workerlib": 1, "window": True}, "a stream window of True items"),
        ({"workerlib": 1, "window": 1.5}, "a stream window of 1.5 items"),
    ],
)
def test_a_wrong_announcement_is_refused(value: object, text: str) -> None:
    """Another version of the dialect, or a window that is no number of items."""
    with pytest.raises(ProtocolError, match=text):
        parse_dialect(value)


# Messages from the wrong side, and answers nobody asked for


@pytest.mark.parametrize("kind", [frames.CONNECT, frames.CONNECT_OK, frames.CONNECT_FAIL, frames.RESULT])
def test_a_server_refuses_what_only_servers_send(kind: int) -> None:
    """Answers to a server end the connection."""
    assert [c.kind for c in closed_of(server().receive(frame(kind, NIL), 0))] == [CloseKind.PROTOCOL]


@pytest.mark.parametrize("kind", [frames.CONNECT, frames.CONNECT_OK, frames.CONNECT_FAIL, frames.INVOKE])
def test_a_client_refuses_what_only_clients_send(kind: int) -> None:
    """Calls to a client end the connection."""
    assert [c.kind for c in closed_of(client().receive(frame(kind, NIL), 0))] == [CloseKind.PROTOCOL]


UNASKED = {
    "result": frame(frames.RESULT, NIL, seq=5),
    "stream": frame(frames.RESULT, NIL, seq=5, flags=frames.ITEM_STREAM),
    "item": frame(frames.ITEM, items(1), seq=5),
    "end": frame(frames.END, NIL, seq=5),
    "abort": frame(frames.ABORT, NIL, seq=5),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", UNASKED)
def test_a_client_refuses_answers_that_it_did_not_ask_for(case: str, way: str) -> None:
    """A frame for an unknown call ends the connection: the two ends disagree about what is going on."""
    session = client()
    events = [event for piece in WAYS[way](UNASKED[case]) for event in session.receive(piece, 0)]
    assert [c.kind for c in closed_of(events)] == [CloseKind.PROTOCOL]
    assert session.state is State.CLOSED


def test_a_call_has_one_last_answer() -> None:
    """A second result, also for a call that became a stream, ends the connection."""
    for second in (frame(frames.RESULT, NIL), frame(frames.RESULT, NIL, flags=frames.ITEM_STREAM)):
        for first in (frame(frames.RESULT, NIL), frame(frames.RESULT, NIL, flags=frames.ITEM_STREAM)):
            session = client()
            session.call(NIL)
            assert not list(closed_of(session.receive(first, 0)))
            assert [c.kind for c in closed_of(session.receive(second, 0))] == [CloseKind.PROTOCOL]


@pytest.mark.parametrize("kind", [frames.ITEM, frames.END])
def test_a_server_refuses_items_that_it_did_not_ask_for(kind: int) -> None:
    """There is no stream towards the server."""
    assert [c.kind for c in closed_of(server().receive(frame(kind, items(1)), 0))] == [CloseKind.PROTOCOL]


def test_credit_and_abort_for_what_has_ended_are_nothing() -> None:
    """They cross with the end on the wire; the server lets them pass."""
    pair = SessionPair()
    seq = pair.open_stream()
    grant, abort = pair.client.grant(seq, 1), pair.client.abort(seq, "enough")
    pair.to_client += pair.server.end(seq, NIL)
    pair.to_server += grant + abort
    pair.deliver()
    assert pair.ends() == (None, None)
    assert [event.type for event in pair.at_server] == [frames.ABORT]


# Credit


def test_credit_is_counted_exactly() -> None:
    """The window, less what was sent, plus what was granted; the same at both ends once all has arrived."""
    pair = SessionPair()
    seq = pair.open_stream()
    assert pair.server.credit(seq) == pair.client.allowed(seq) == WINDOW
    pair.to_client += pair.server.items(seq, items(1, 2, 3), 3)
    assert (pair.server.credit(seq), pair.client.allowed(seq)) == (WINDOW - 3, WINDOW)
    pair.deliver()
    assert (pair.server.credit(seq), pair.client.allowed(seq)) == (WINDOW - 3, WINDOW - 3)
    pair.to_server += pair.client.grant(seq, 2)
    assert (pair.server.credit(seq), pair.client.allowed(seq)) == (WINDOW - 3, WINDOW - 1)
    pair.deliver()
    assert (pair.server.credit(seq), pair.client.allowed(seq)) == (WINDOW - 1, WINDOW - 1)
    assert pair.take_at_server().type == frames.CREDIT


def test_a_sender_cannot_send_beyond_its_credit() -> None:
    """Sending one item too many is a bug of ours, found where it happens."""
    pair = SessionPair()
    seq = pair.open_stream()
    with pytest.raises(AssertionError, match="without credit"):
        pair.server.items(seq, items(*range(WINDOW + 1)), WINDOW + 1)


@pytest.mark.parametrize("way", WAYS)
def test_items_beyond_the_credit_end_the_connection(way: str) -> None:
    """Exactly the window is accepted, one more is not, also when it comes in one message."""
    for batches in ([WINDOW + 1], [WINDOW, 1], [1] * (WINDOW + 1)):
        session = client()
        seq, _ = session.call(NIL)
        session.receive(frame(frames.RESULT, NIL, seq=seq, flags=frames.ITEM_STREAM), 0)
        data = b"".join(frame(frames.ITEM, items(*range(count)), seq=seq) for count in batches)
        events = [event for piece in WAYS[way](data) for event in session.receive(piece, 0)]
        assert [type(event) for event in events] == [Frame] * (len(batches) - 1) + [Closed]
        assert "items on stream 1, where" in str(events[-1])


@pytest.mark.parametrize("count", [1, 127, 128, 255, 256, 65535, 65536, 0xFFFFFFFF])
def test_credit_of_any_size_travels(count: int) -> None:
    """Each width of MessagePack's numbers."""
    pair = SessionPair()
    seq = pair.open_stream()
    pair.to_server += pair.client.grant(seq, count)
    pair.deliver()
    assert pair.server.credit(seq) == WINDOW + count


@pytest.mark.parametrize(
    "payload",
    [b"", NIL, encode(-1), encode(1 << 32), encode("1"), encode(1.0), b"\xcc", b"\xcd\x01", b"\x01\x01"],
    ids=repr,
)
def test_credit_that_is_no_number_ends_the_connection(payload: bytes) -> None:
    """So does a negative one: credit is never taken back."""
    pair = SessionPair()
    seq = pair.open_stream()
    pair.to_server += frame(frames.CREDIT, payload, seq=seq)
    pair.deliver()
    assert pair.ends() == (None, CloseKind.PROTOCOL)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65535, 65536])
def test_items_are_counted_from_the_first_bytes(count: int) -> None:
    """Each width of MessagePack's arrays; the items themselves are not decoded for it."""
    assert count_items(encode([None] * count)) == count


@pytest.mark.parametrize("payload", [b"", NIL, b"\x80", b"\xdc\x01", b"\xdd\x00\x00\x00", encode("ab")], ids=repr)
def test_items_that_are_no_array_end_the_connection(payload: bytes) -> None:
    """Anything but an array, also one whose length is cut off."""
    with pytest.raises(ProtocolError, match="items that are not an array"):
        count_items(payload)


# Abort at each stage


def test_abort_of_a_call_keeps_its_number_until_the_answer() -> None:
    """So that the late answer cannot be taken for another call's."""
    pair = SessionPair()
    seq, _ = pair.call()
    pair.to_server += pair.client.abort(seq, "cancelled")
    pair.deliver()
    assert pair.take_at_server() == Frame(frames.ABORT, 4, 0, seq, encode("cancelled"))
    others = {pair.client.call(NIL)[0] for _ in range(MAX_SEQ - 1)}
    assert seq not in others
    pair.to_client += pair.server.result(seq, NIL)
    pair.deliver()
    assert pair.take_at_client().seq == seq
    assert pair.client.call(NIL)[0] == seq


def test_abort_before_the_call_has_arrived() -> None:
    """Call and abort in one read: the server sees both, in order."""
    pair = SessionPair()
    seq, data = pair.client.call(NIL)
    pair.to_server += data + pair.client.abort(seq, "")
    pair.deliver()
    assert [event.type for event in pair.at_server] == [frames.INVOKE, frames.ABORT]


def test_abort_while_the_start_of_the_stream_is_under_way() -> None:
    """The client aborts what it does not yet know to be a stream; items that cross are accepted, the end frees it."""
    pair = SessionPair()
    seq, _ = pair.call()
    pair.to_server += pair.client.abort(seq, "")
    pair.to_client += pair.server.open_stream(seq) + pair.server.items(seq, items(1, 2), 2)
    pair.deliver()
    assert pair.server.credit(seq) == 0
    pair.to_client += pair.server.abort(seq, "as you wish")
    pair.deliver()
    assert [event.type for event in pair.at_client] == [frames.RESULT, frames.ITEM, frames.ABORT]
    assert pair.client.allowed(seq) == 0
    assert pair.ends() == (None, None)


def test_abort_of_a_stream_takes_its_credit() -> None:
    """The server may send no more items, only the last frame."""
    pair = SessionPair()
    seq = pair.open_stream()
    pair.to_server += pair.client.abort(seq, "")
    pair.deliver()
    assert pair.server.credit(seq) == 0


def test_abort_by_the_server_is_the_last_frame() -> None:
    """After it the number is free and no item may come."""
    pair = SessionPair()
    seq = pair.open_stream()
    pair.to_client += pair.server.abort(seq, "shutting down")
    pair.deliver()
    assert pair.take_at_client().payload == encode("shutting down")
    assert pair.client.grant(seq, 1) == b""
    pair.to_client += frame(frames.ITEM, items(1), seq=seq)
    pair.deliver()
    assert pair.ends() == (CloseKind.PROTOCOL, None)


def test_abort_by_the_server_also_ends_a_plain_call() -> None:
    """Nobody waits for ever because the peer gave up."""
    pair = SessionPair()
    seq, _ = pair.call()
    pair.to_client += pair.server.abort(seq, "shutting down")
    pair.deliver()
    assert pair.take_at_client().type == frames.ABORT


def test_two_streams_cannot_have_one_number() -> None:
    """The server refuses to open a second one."""
    pair = SessionPair()
    seq = pair.open_stream()
    with pytest.raises(ProtocolError, match=f"sequence number {seq} while the first is a stream"):
        pair.server.open_stream(seq)


# Sequence numbers


def test_sequence_numbers_wrap_and_skip_those_in_use() -> None:
    """1 to 65535 and round again; 0 is the heartbeat's; a number under way is not given twice."""
    session = client()
    kept = [session.call(NIL)[0] for _ in range(3)]
    assert kept == [1, 2, 3]
    for expected in range(4, MAX_SEQ + 1):
        seq, _ = session.call(NIL)
        assert seq == expected
        session.receive(frame(frames.RESULT, NIL, seq=seq), 0)
    assert session.call(NIL)[0] == 4
    assert session.ping()[0] == 5


def test_one_call_too_many_is_refused() -> None:
    """With 65,535 calls under way the next one raises; an answer makes room."""
    session = client()
    for _ in range(MAX_SEQ):
        session.call(NIL)
    for attempt in (session.call, session.call_one_way):
        with pytest.raises(UsageError, match="65535 calls are under way"):
            attempt(NIL)
    session.receive(frame(frames.RESULT, NIL, seq=777), 0)
    assert session.call(NIL)[0] == 777


# Time


def test_a_dripping_message_has_a_deadline_from_its_first_byte() -> None:
    """However steadily its bytes drip in; longer messages get a second more for each MiB."""
    session = server()
    data = frame(frames.INVOKE, bytes(60000))
    limit = SETTINGS.frame_timeout_s + len(data) / (1 << 20)
    for n, byte in enumerate(byte_by_byte(data[:3000])):
        assert session.receive(byte, n / 1000) == []
    assert session.deadline_at == pytest.approx(limit)
    assert session.tick(limit - 0.01) == []
    (closed,) = session.tick(limit)
    assert closed == Closed(CloseKind.FRAME_TIMEOUT, f"{len(data)} bytes were announced")


def test_each_message_has_its_own_deadline() -> None:
    """A busy peer whose reads always end in the middle of a message is never cut off."""
    session = server()
    data = frame(frames.INVOKE, b"x" * 60)
    stream, now = data * 100, 0.0
    for at in range(0, len(stream) - 50, 70):
        assert not list(closed_of(session.receive(stream[at : at + 70], now)))
        now += 1.0
        if now >= session.deadline_at:
            assert session.tick(now) == []


def test_a_message_that_ends_leaves_no_deadline() -> None:
    """Between messages only the heartbeat is due."""
    session = server()
    data = frame(frames.INVOKE, b"abc")
    session.receive(data[:10], 1)
    assert session.deadline_at == pytest.approx(1 + SETTINGS.frame_timeout_s, abs=0.01)
    session.receive(data[10:], 2)
    assert session.deadline_at == SETTINGS.heartbeat_interval_s


def test_while_reading_is_held_the_peer_cannot_be_late() -> None:
    """What we do not read cannot end in time: message and heartbeat get the held time back."""
    session = server()
    data = frame(frames.INVOKE, b"abc")
    session.receive(data[:10], 1)
    session.hold(2)
    assert session.deadline_at == float("inf")
    assert session.tick(1000) == []
    session.unhold(1002)
    assert session.deadline_at == 10  # the heartbeat, overdue: the peer is asked, not lost
    assert session.tick(1002) == []
    assert session.deadline_at == pytest.approx(1 + 1000 + SETTINGS.frame_timeout_s, abs=0.01)
    assert session.receive(data[10:], 1003)[0].type == frames.INVOKE


def test_heartbeats_keep_an_idle_connection() -> None:
    """Both ends ask and answer; an hour of silence of their users is no reason to end."""
    pair = SessionPair()
    for _ in range(720):
        pair.advance(5)
        pair.deliver()
    assert pair.ends() == (None, None)
    assert {event.type for event in (*pair.at_client, *pair.at_server)} == {frames.PING}


def test_a_silent_peer_is_lost() -> None:
    """Nothing is delivered any more: after the timeout and one last chance both ends give up."""
    pair = SessionPair()
    pair.advance(SETTINGS.heartbeat_timeout_s + 0.5)
    assert pair.ends() == (None, None)
    pair.advance(SETTINGS.heartbeat_interval_s)
    assert pair.ends() == (CloseKind.HEARTBEAT_LOST, CloseKind.HEARTBEAT_LOST)
    assert str(pair.client.closed) == "no sign of life: for 40 s"


def test_an_answer_to_the_last_question_saves_the_connection() -> None:
    """Any byte counts."""
    pair = SessionPair()
    pair.advance(SETTINGS.heartbeat_timeout_s + 0.5)
    pair.deliver()
    pair.advance(SETTINGS.heartbeat_interval_s)
    pair.deliver()
    assert pair.ends() == (None, None)


# The end


def test_after_the_end_nothing_happens() -> None:
    """No events, no deadline, and the first reason stays."""
    session = server()
    assert session.close(CloseKind.PEER, "first") == session.close(CloseKind.LOCAL, "second")
    assert session.receive(frame(frames.INVOKE, NIL), 1) == []
    assert session.tick(1e9) == []
    assert session.deadline_at == float("inf")
    session.hold(1)
    session.unhold(2)
    assert session.deadline_at == float("inf")
    assert str(session.closed) == "closed by the peer: first"
    assert str(session.close(CloseKind.LOCAL).as_error()) == "closed by the peer: first"
    assert isinstance(session.close(CloseKind.LOCAL).as_error(), ConnectionLost)


def test_events_before_wrong_bytes_come_before_closed() -> None:
    """One read with a call and garbage: the call counts, then the connection ends."""
    events = server().receive(frame(frames.INVOKE, NIL) + b"garbage!" * 10, 0)
    assert [type(event) for event in events] == [Frame, Closed]


@pytest.mark.parametrize("kind", CloseKind)
def test_every_reason_reads_as_words(kind: CloseKind) -> None:
    """With and without detail."""
    assert str(Closed(kind)) == kind.value
    assert str(Closed(kind, "why")) == f"{kind.value}: why"


# Anything in any order


class JoinedSessions(RuleBasedStateMachine):
    """Random calls, streams, aborts, grants, pings, partial delivery and time, with a model of what is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = SessionPair()
        self.asked: set[int] = set()
        """Numbers of calls whose last frame the client has not got."""
        self.running: set[int] = set()
        """Calls that the server has got and not ended."""
        self.streams: set[int] = set()
        """Those of them that are streams."""
        self.seen_streams: set[int] = set()
        """Streams that the client knows, and has not seen the end of."""
        self.ended = False

    @initialize()
    def quiet(self) -> None:
        assert self.pair.ends() == (None, None)

    def _look(self) -> None:
        pair = self.pair
        for event in pair.at_server:
            if isinstance(event, Closed):
                self._end()
            elif event.type == frames.INVOKE and not event.flags & frames.ONE_WAY:
                assert event.seq not in self.running
                self.running.add(event.seq)
        for event in pair.at_client:
            if isinstance(event, Closed):
                self._end()
            elif event.type == frames.RESULT and event.flags == frames.ITEM_STREAM:
                assert event.seq in self.asked
                self.seen_streams.add(event.seq)
            elif event.type in {frames.RESULT, frames.END, frames.ABORT}:
                self.asked.remove(event.seq)  # exactly one last frame
                self.seen_streams.discard(event.seq)
            elif event.type == frames.ITEM:
                assert event.seq in self.seen_streams
        pair.at_server.clear()
        pair.at_client.clear()

    def _end(self) -> None:
        assert self.pair.now - self.heard_at >= SETTINGS.heartbeat_timeout_s, "a healthy session has ended"
        self.ended = True

    heard_at = 100.0
    alive = precondition(lambda self: not self.ended)

    @alive
    @rule()
    def call(self) -> None:
        seq, data = self.pair.client.call(NIL)
        assert seq not in self.asked
        self.asked.add(seq)
        self.pair.to_server += data

    @alive
    @rule()
    def call_one_way(self) -> None:
        self.pair.to_server += self.pair.client.call_one_way(NIL)

    @alive
    @rule()
    def ping(self) -> None:
        self.pair.to_server += self.pair.client.ping()[1]

    @precondition(lambda self: not self.ended and self.running - self.streams)
    @rule(data=st.data(), stream=st.booleans())
    def answer(self, data: st.DataObject, stream: bool) -> None:
        seq = data.draw(st.sampled_from(sorted(self.running - self.streams)))
        if stream:
            self.pair.to_client += self.pair.server.open_stream(seq)
            self.streams.add(seq)
        else:
            self.pair.to_client += self.pair.server.result(seq, NIL)
            self.running.remove(seq)

    @precondition(lambda self: not self.ended and self.streams)
    @rule(data=st.data(), count=st.integers(1, WINDOW + 2))
    def send_items(self, data: st.DataObject, count: int) -> None:
        seq = data.draw(st.sampled_from(sorted(self.streams)))
        count = min(count, self.pair.server.credit(seq))
        if count:
            self.pair.to_client += self.pair.server.items(seq, items(*range(count)), count)

    @precondition(lambda self: not self.ended and self.streams)
    @rule(data=st.data(), failed=st.booleans(), give_up=st.booleans())
    def end_stream(self, data: st.DataObject, failed: bool, give_up: bool) -> None:
        seq = data.draw(st.sampled_from(sorted(self.streams)))
        server = self.pair.server
        self.pair.to_client += server.abort(seq, "") if give_up else server.end(seq, NIL, failed=failed)
        self.streams.remove(seq)
        self.running.remove(seq)

    @precondition(lambda self: not self.ended and self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.asked)))
        self.pair.to_server += self.pair.client.abort(seq, "enough")

    @precondition(lambda self: not self.ended and self.seen_streams)
    @rule(data=st.data(), count=st.integers(1, 20))
    def grant(self, data: st.DataObject, count: int) -> None:
        seq = data.draw(st.sampled_from(sorted(self.seen_streams)))
        self.pair.to_server += self.pair.client.grant(seq, count)

    @rule(most=st.integers(1, 200))
    def deliver_some(self, most: int) -> None:
        if self.pair.to_server and self.pair.to_client:
            self.heard_at = self.pair.now
        self.pair.deliver_to_server(most)
        self.pair.deliver_to_client(most)
        self._look()

    @rule()
    def deliver_all(self) -> None:
        self.pair.deliver()
        self.heard_at = self.pair.now
        self._look()

    @rule(seconds=st.floats(0.01, 2))
    def wait(self, seconds: float) -> None:
        # Never as long as the deadline of a message that is under way: that history has its own test.
        self.pair.deliver()
        self._look()
        self.pair.advance(seconds)
        self._look()

    @invariant()
    def no_item_without_credit(self) -> None:
        """The sender never believes to have more credit than the receiver has granted."""
        for seq in self.streams & self.seen_streams:
            assert self.pair.server.credit(seq) >= 0
            if seq in self.asked:
                assert self.pair.server.credit(seq) <= self.pair.client.allowed(seq)

    @invariant()
    def nothing_comes_after_closed(self) -> None:
        if self.ended:
            assert (
                self.pair.client.receive(frame(frames.PING, b"ping"), self.pair.now) == []
                or not self.pair.client.closed
            )

    def teardown(self) -> None:
        """Whatever is still running can be ended, and then nothing is left."""
        if self.ended:
            return
        self.pair.deliver()
        self._look()
        for seq in sorted(self.running):
            end = self.pair.server.end(seq, NIL) if seq in self.streams else self.pair.server.result(seq, NIL)
            self.pair.to_client += end
        self.running.clear()
        self.streams.clear()
        self.pair.deliver()
        self._look()
        assert not self.asked
        assert not self.seen_streams
        assert self.pair.ends() == (None, None)


JoinedSessions.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
TestJoinedSessions = JoinedSessions.TestCase
