"""Peers that read only now and then: what they announce, and who judges whom."""

import pytest

from workerlib.core.client_session import ClientSession
from workerlib.core.payload import decode
from workerlib.core.session import (
    DIALECT,
    CloseKind,
    parse_dialect,
)
from workerlib.errors import ProtocolError
from workerlib.shell.compression import inflate
from workerlib.testing.sessions import SETTINGS, SessionPair


class NowAndThen(SessionPair):
    """A pair whose client reads only while it waits for something."""

    def __init__(self) -> None:
        super().__init__(connect=False)
        self.client = ClientSession(SETTINGS, inflate, self.now, always_reading=False)
        self.to_server += self.client.connect("w", None)
        self.deliver()
        hello = self.take_at_server()
        announced = parse_dialect(decode(hello.payload)["handshake"])
        assert announced is not None
        assert announced["heartbeat"] is False
        self.to_client += self.server.accept(hello, b"\xc0", announced, self.now)
        self.deliver()
        self.greet(self.take_at_client())


def test_a_client_that_reads_now_and_then_is_not_judged() -> None:
    """The server neither asks a peer that announced `"heartbeat": false` for signs of life nor cuts it off."""
    pair = NowAndThen()
    pair.client.hold(pair.now)
    pair.advance(3600)
    assert pair.ends() == (None, None)
    assert not pair.to_client


def test_a_client_that_reads_now_and_then_still_judges_the_server_while_it_waits() -> None:
    """While it is held nothing is judged; then it asks, and a server that stays silent is lost after the timeout."""
    pair = NowAndThen()
    pair.client.hold(pair.now)
    pair.advance(3600)
    pair.client.unhold(pair.now)
    pair.advance(50)
    assert pair.ends() == (CloseKind.HEARTBEAT_LOST, None)


def test_a_server_that_answers_keeps_such_a_client() -> None:
    """Pongs are signs of life: the client waits for as long as they come."""
    pair = NowAndThen()
    for _ in range(20):
        pair.advance(10)
        pair.deliver()
    assert pair.ends() == (None, None)


def test_a_heartbeat_announcement_that_is_no_boolean_is_refused() -> None:
    """`"heartbeat": 0` may mean anything, so it ends the handshake with an error that shows it."""
    with pytest.raises(ProtocolError, match="heartbeat 0, which is neither true nor false"):
        parse_dialect({"workerlib": DIALECT, "window": 1, "heartbeat": 0})
