"""URIs and socket paths."""

import pytest

from workerlib.core.uri import MAX_SOCKET_PATH, TcpLocation, UnixLocation, Uri, check_socket_path, parse_uri
from workerlib.errors import UsageError

VALID = {
    "PYRO:Sum-1@./u:/run/sum.sock": Uri("Sum-1", UnixLocation("/run/sum.sock")),
    "PYRO:Pyro.NameServer@./u:relative.sock": Uri("Pyro.NameServer", UnixLocation("relative.sock")),
    "PYRO:w@localhost:9090": Uri("w", TcpLocation("localhost", 9090)),
    "PYRO:w@127.0.0.1:1": Uri("w", TcpLocation("127.0.0.1", 1)),
    "PYRO:w@[::1]:65535": Uri("w", TcpLocation("::1", 65535)),
}

REFUSED = {
    "": "is not a URI",
    "PYRONAME:w": "is not a URI",
    "PYRO:w": "is not a URI",
    "PYRO:@localhost:1": "is not a URI",
    "PYRO:a b@localhost:1": "is not a URI",
    "pyro:w@localhost:1": "is not a URI",
    "PYRO:w@localhost": "neither ./u:/path nor host:port",
    "PYRO:w@localhost:0": "neither ./u:/path nor host:port",
    "PYRO:w@localhost:65536": "neither ./u:/path nor host:port",
    "PYRO:w@localhost:http": "neither ./u:/path nor host:port",
    "PYRO:w@:9090": "neither ./u:/path nor host:port",
    "PYRO:w@::1:9090": "neither ./u:/path nor host:port",
    "PYRO:w@./u:": "names no path",
    "PYRO:w@localhost:1\n": "is not a URI",
}


@pytest.mark.parametrize("text", VALID)
def test_a_uri_is_read_and_written_back(text: str) -> None:
    """Reading gives the parts, writing them gives the text."""
    assert parse_uri(text) == VALID[text]
    assert str(parse_uri(text)) == text


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_uri_is_refused_with_the_reason(text: str) -> None:
    """The error shows the text and what is wrong with it."""
    with pytest.raises(UsageError, match=REFUSED[text]):
        parse_uri(text)


def test_a_socket_path_may_have_107_bytes() -> None:
    """Linux's limit, in bytes of UTF-8, told before the system's own "AF_UNIX path too long"."""
    check_socket_path("/" + "x" * (MAX_SOCKET_PATH - 1))
    with pytest.raises(UsageError, match="has 108 bytes, Linux accepts 107"):
        check_socket_path("/" + "x" * MAX_SOCKET_PATH)
    with pytest.raises(UsageError, match="has 121 bytes"):
        check_socket_path("/" + "ü" * 60)


def test_a_socket_path_cannot_have_a_colon() -> None:
    """Pyro5 would cut the URI there."""
    with pytest.raises(UsageError, match="has a colon"):
        check_socket_path("/run/a:b")
