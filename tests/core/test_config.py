"""The worker configuration that travels on stdin."""

import pytest

from workerlib.core.config import MAX_SIZE, WorkerConfig, decode_config, encode_config, split_reference
from workerlib.errors import UsageError
from workerlib.redirects import Redirect
from workerlib.spec import RpcSettings, ShutdownOn

CONFIG = WorkerConfig(
    worker="pricing.job:Pricing",
    worker_id="pricing-1-0123456789ab",
    name="pricing@1",
    token="secret",
    master="PYRO:parsup.Master@./u:/run/parsupd/parsupd.sock",
    location="./u:/run/parsupd/workers/0123456789ab.sock",
    shutdown_on=ShutdownOn.CONNECTION_CLOSED,
    cd="/",
    umask=None,
    stdout=Redirect.append("/var/log/pricing"),
    stderr=Redirect.descriptor(64),
    connection_timeout_s=10,
    lease_s=0,
    settings=RpcSettings(max_message_size=1000),
    sys_path=None,
    parent_pid=1,
)


def test_a_configuration_comes_out_as_it_went_in() -> None:
    """Encoding and decoding give the same value, redirects and settings included."""
    assert decode_config(encode_config(CONFIG)) == CONFIG


@pytest.mark.parametrize(
    "data", [b"", b"not a configuration", encode_config(CONFIG)[:-1], encode_config(CONFIG) + b"x"]
)
def test_anything_else_is_refused_with_the_likely_reason(data: bytes) -> None:
    """Empty, foreign, cut off or longer input is a UsageError that asks whether stdin was read before."""
    with pytest.raises(UsageError, match="was stdin read before"):
        decode_config(data)


def test_a_configuration_is_bounded() -> None:
    """More than 1 MiB is refused before it is looked at."""
    with pytest.raises(UsageError, match="more than 1048576 bytes"):
        decode_config(bytes(MAX_SIZE + 1))


@pytest.mark.parametrize(
    ("reference", "parts"),
    [("a.b:C", ("a.b", "C")), ("/x/y.py:C", ("/x/y.py", "C")), ("/x/y:z.py:C.D", ("/x/y:z.py", "C.D"))],
)
def test_references(reference: str, parts: tuple[str, str]) -> None:
    """The class stands after the last colon."""
    assert split_reference(reference) == parts


@pytest.mark.parametrize("reference", ["", "a.b", ":C", "a.b:"])
def test_bad_references_are_refused(reference: str) -> None:
    """A reference without a module or a class is told as it was given."""
    with pytest.raises(UsageError, match="does not name a worker class"):
        split_reference(reference)
