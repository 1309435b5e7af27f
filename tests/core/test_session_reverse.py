"""Calls that send items: who may send what when, until the number is free again, whatever the order."""

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from wire import WAYS, closed_of, frame

from workerlib.core import frames
from workerlib.core.frames import Frame
from workerlib.core.payload import encode
from workerlib.core.session import CloseKind
from workerlib.testing.sessions import SETTINGS, SessionPair, byte_by_byte, whole

NIL = b"\xc0"
WINDOW = SETTINGS.stream_window


def items(count: int) -> bytes:
    return encode(list(range(count)))


def opened() -> tuple[SessionPair, int]:
    """A call that sends items and has arrived at the server."""
    pair = SessionPair()
    seq, data = pair.client.call_with_items(NIL)
    pair.to_server += data
    pair.deliver()
    assert pair.take_at_server().flags == frames.ITEM_STREAM
    return pair, seq


def is_free(pair: SessionPair, seq: int) -> bool:
    """Whether the client may use a number again."""
    pair.client._seq = seq - 1
    return pair.client.call(NIL)[0] == seq


@pytest.mark.parametrize("way", [whole, byte_by_byte])
def test_items_and_their_end_travel_to_the_server(way) -> None:
    """Right behind the call, in one read with it or byte by byte; then the answer; then the number is free."""
    pair = SessionPair()
    seq, data = pair.client.call_with_items(b"call")
    pair.to_server += data + pair.client.items(seq, items(3), 3) + pair.client.end(seq, NIL)
    pair.deliver(way)
    assert [event.type for event in pair.at_server] == [frames.INVOKE, frames.ITEM, frames.END]
    assert pair.take_at_client() == Frame(frames.END, 4, 0, seq, encode("its end was seen"))
    assert not is_free(pair, seq)
    pair.to_client += pair.server.result(seq, b"result")
    pair.deliver(way)
    assert pair.take_at_client() == Frame(frames.RESULT, 4, 0, seq, b"result")
    assert pair.ends() == (None, None)
    assert is_free(pair, seq)


def test_the_answer_may_come_before_the_end() -> None:
    """Items go on after it; the number is free after the end at both sides."""
    pair, seq = opened()
    pair.to_client += pair.server.result(seq, NIL)
    pair.to_server += pair.client.items(seq, items(2), 2)
    pair.deliver()
    pair.to_server += pair.client.items(seq, items(2), 2)
    pair.deliver()
    assert [event.type for event in pair.at_server] == [frames.ITEM, frames.ITEM]
    assert not is_free(pair, seq)
    pair.to_server += pair.client.end(seq, NIL)
    pair.deliver()
    assert pair.ends() == (None, None)
    assert is_free(pair, seq)


def test_the_server_may_stop_the_items() -> None:
    """It says so once; what crosses is accepted, also beyond that; the client's own end closes it."""
    pair, seq = opened()
    crossing = pair.client.items(seq, items(2), 2)
    pair.to_client += pair.server.stop(seq, "seen enough")
    assert pair.server.stop(seq, "again") == b""
    pair.to_server += crossing
    pair.deliver()
    assert pair.take_at_client() == Frame(frames.END, 4, 0, seq, encode("seen enough"))
    assert pair.take_at_server().type == frames.ITEM
    assert pair.client.credit(seq) == 0
    pair.to_server += pair.client.end(seq, NIL)
    pair.deliver()
    assert not pair.at_client, "the end was acknowledged before"
    pair.to_client += pair.server.result(seq, NIL)
    pair.deliver()
    assert pair.ends() == (None, None)
    assert is_free(pair, seq)


def test_late_credit_cannot_be_taken_for_that_of_another_stream() -> None:
    """The number is not free before the server has said its last word about the items."""
    pair, seq = opened()
    pair.to_client += pair.server.result(seq, NIL)
    pair.deliver()
    late = pair.server.grant(seq, 5)
    pair.to_server += pair.client.end(seq, NIL)
    assert not is_free(pair, seq)
    pair.to_client += late
    pair.deliver()
    assert is_free(pair, seq)
    assert pair.ends() == (None, None)


def test_credit_is_counted_exactly() -> None:
    """The server's window, less what was sent, plus what was granted; the same at both ends."""
    pair, seq = opened()
    assert pair.client.credit(seq) == pair.server.allowed(seq) == WINDOW
    pair.to_server += pair.client.items(seq, items(3), 3)
    pair.deliver()
    assert pair.client.credit(seq) == pair.server.allowed(seq) == WINDOW - 3
    pair.to_client += pair.server.grant(seq, 2)
    pair.deliver()
    assert pair.take_at_client().type == frames.CREDIT
    assert pair.client.credit(seq) == pair.server.allowed(seq) == WINDOW - 1


def test_giving_the_call_up_ends_its_items() -> None:
    """ABORT is the client's end; the server acknowledges that and owes its answer."""
    pair, seq = opened()
    pair.to_server += pair.client.abort(seq, "enough")
    pair.deliver()
    assert pair.take_at_server().type == frames.ABORT
    assert pair.take_at_client().type == frames.END
    assert pair.server.allowed(seq) == 0
    assert not is_free(pair, seq)
    pair.to_client += pair.server.result(seq, NIL)
    pair.deliver()
    assert is_free(pair, seq)


def test_giving_up_after_the_end_is_allowed() -> None:
    """A caller that has sent everything may still cancel."""
    pair, seq = opened()
    pair.to_server += pair.client.end(seq, NIL) + pair.client.abort(seq, "too slow")
    pair.deliver()
    assert [event.type for event in pair.at_server] == [frames.END, frames.ABORT]
    pair.to_client += pair.server.abort(seq, "as you wish")
    pair.deliver()
    assert pair.ends() == (None, None)
    assert is_free(pair, seq)


def call(seq: int = 1, flags: int = frames.ITEM_STREAM) -> bytes:
    return frame(frames.INVOKE, NIL, seq=seq, flags=flags)


HOSTILE_TO_SERVER = {
    "more items than the window": call() + frame(frames.ITEM, items(WINDOW + 1)),
    "items in small pieces beyond it": call() + frame(frames.ITEM, items(1)) * (WINDOW + 1),
    "items after the end": call() + frame(frames.END, NIL) + frame(frames.ITEM, items(1)),
    "items after the abort": call() + frame(frames.ABORT, NIL) + frame(frames.ITEM, items(1)),
    "two ends": call() + frame(frames.END, NIL) * 2,
    "two calls with one number": call() * 2,
    "items of a call that sends none": call(flags=0) + frame(frames.ITEM, items(1)),
    "items that are no array": call() + frame(frames.ITEM, NIL),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", HOSTILE_TO_SERVER)
def test_a_client_that_breaks_the_rules_ends_the_connection(case: str, way: str) -> None:
    """However its bytes are cut."""
    pair = SessionPair()
    events = [event for piece in WAYS[way](HOSTILE_TO_SERVER[case]) for event in pair.server.receive(piece, pair.now)]
    assert [closed.kind for closed in closed_of(events)] == [CloseKind.PROTOCOL]


HOSTILE_TO_CLIENT = {
    "two answers": frame(frames.RESULT, NIL) * 2,
    "an answer and an abort": frame(frames.RESULT, NIL) + frame(frames.ABORT, NIL),
    "two ends": frame(frames.END, NIL) * 2,
    "a stream for an answer": frame(frames.RESULT, NIL, flags=frames.ITEM_STREAM),
    "items": frame(frames.ITEM, items(1)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", HOSTILE_TO_CLIENT)
def test_a_server_that_breaks_the_rules_ends_the_connection(case: str, way: str) -> None:
    """However its bytes are cut."""
    pair = SessionPair()
    assert pair.client.call_with_items(NIL)[0] == 1
    events = [event for piece in WAYS[way](HOSTILE_TO_CLIENT[case]) for event in pair.client.receive(piece, pair.now)]
    assert [closed.kind for closed in closed_of(events)] == [CloseKind.PROTOCOL]


def test_the_shortcut_leaves_answers_of_such_calls_alone() -> None:
    """Their numbers are not free after the answer."""
    pair, seq = opened()
    assert pair.client.sole_result(pair.server.result(seq, NIL)) == -1


class ReverseStreams(RuleBasedStateMachine):
    """Random calls that send items, ends, stops, answers and aborts, delivered in pieces; a model of who owes what."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = SessionPair()
        self.feeding: set[int] = set()
        """Calls whose items the client has not ended."""
        self.owed: dict[int, set[str]] = {}
        """What has yet to arrive at the client, or to be said by it, before a number may be used again."""
        self.running: set[int] = set()
        """Calls that the server has got and not answered."""
        self.reading: set[int] = set()
        """Calls whose items the server may still stop."""

    def _look(self) -> None:
        for event in self.pair.at_server:
            assert isinstance(event, Frame), event
            if event.type == frames.INVOKE:
                assert event.seq not in self.running
                self.running.add(event.seq)
                self.reading.add(event.seq)
        for event in self.pair.at_client:
            assert isinstance(event, Frame), event
            if event.type in {frames.RESULT, frames.ABORT}:
                self._settle(event.seq, "answer")
            elif event.type == frames.END:
                self._settle(event.seq, "stop")
                if event.seq in self.feeding:  # as the shell does
                    self.pair.to_server += self.pair.client.end(event.seq, NIL)
                    self.feeding.discard(event.seq)
                    self._settle(event.seq, "end")
        self.pair.at_server.clear()
        self.pair.at_client.clear()

    def _settle(self, seq: int, what: str) -> None:
        self.owed[seq].remove(what)
        if not self.owed[seq]:
            del self.owed[seq]

    @rule()
    def call(self) -> None:
        seq, data = self.pair.client.call_with_items(NIL)
        assert seq not in self.owed
        self.owed[seq] = {"answer", "stop", "end"}
        self.feeding.add(seq)
        self.pair.to_server += data

    @rule()
    def plain_call(self) -> None:
        seq, _ = self.pair.client.call(NIL)
        assert seq not in self.owed
        self.pair.client._pending.discard(seq)  # never sent

    @precondition(lambda self: self.feeding)
    @rule(data=st.data(), count=st.integers(1, WINDOW))
    def send(self, data: st.DataObject, count: int) -> None:
        seq = data.draw(st.sampled_from(sorted(self.feeding)))
        count = min(count, self.pair.client.credit(seq))
        if count:
            self.pair.to_server += self.pair.client.items(seq, items(count), count)

    @precondition(lambda self: self.feeding)
    @rule(data=st.data(), give_up=st.booleans())
    def end(self, data: st.DataObject, give_up: bool) -> None:
        seq = data.draw(st.sampled_from(sorted(self.feeding)))
        client = self.pair.client
        self.pair.to_server += client.abort(seq, "") if give_up else client.end(seq, NIL)
        self.feeding.discard(seq)
        self._settle(seq, "end")

    @precondition(lambda self: self.running)
    @rule(data=st.data(), give_up=st.booleans())
    def answer(self, data: st.DataObject, give_up: bool) -> None:
        seq = data.draw(st.sampled_from(sorted(self.running)))
        server = self.pair.server
        self.pair.to_client += server.abort(seq, "") if give_up else server.result(seq, NIL)
        self.running.discard(seq)

    @precondition(lambda self: self.reading)
    @rule(data=st.data(), grant=st.booleans())
    def stop_or_grant(self, data: st.DataObject, grant: bool) -> None:
        seq = data.draw(st.sampled_from(sorted(self.reading)))
        if grant:
            self.pair.to_client += self.pair.server.grant(seq, 3)
        else:
            self.pair.to_client += self.pair.server.stop(seq, "")
            self.reading.discard(seq)

    @rule(most=st.integers(1, 200))
    def deliver_some(self, most: int) -> None:
        self.pair.deliver_to_server(most)
        self.pair.deliver_to_client(most)
        self._look()

    @rule()
    def deliver_all(self) -> None:
        self.pair.deliver()
        self._look()

    @invariant()
    def no_item_without_credit(self) -> None:
        """The sender never believes to have more credit than the receiver has granted."""
        for seq in self.feeding & self.reading:
            assert self.pair.client.credit(seq) <= self.pair.server.allowed(seq) or seq not in self.running

    @invariant()
    def both_go_on(self) -> None:
        assert self.pair.ends() == (None, None)

    def teardown(self) -> None:
        """Whatever is still running can be ended, and then nothing is left at either end."""
        self.pair.deliver()
        self._look()
        for seq in sorted(self.feeding):
            self.pair.to_server += self.pair.client.end(seq, NIL)
            self._settle(seq, "end")
        self.feeding.clear()
        for seq in sorted(self.running):
            self.pair.to_client += self.pair.server.result(seq, NIL)
        self.running.clear()
        self.pair.deliver()
        self._look()
        assert not self.owed
        client, server = self.pair.client, self.pair.server
        left = (client._pending, client._sending, client._credit, server._granted, server._wanted)
        assert not any(left)


ReverseStreams.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
TestReverseStreams = ReverseStreams.TestCase
