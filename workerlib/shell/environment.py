"""What the environment, and the program as a whole, say about connections."""

import os

from workerlib.spec import RpcSettings, parse_settings

SETTINGS_VARIABLE = "WORKERLIB_RPC_SETTINGS"


class _Program:
    settings: RpcSettings | None = None


def use_settings(settings: RpcSettings | None) -> None:
    """From now on these are the settings of everything in this process that is given none of its own."""
    _Program.settings = settings


def effective_settings(settings: RpcSettings | None = None) -> RpcSettings:
    """The environment's WORKERLIB_RPC_SETTINGS over the argument, or what the program uses, over the defaults.

    Raises UsageError.
    """
    base = settings or _Program.settings or RpcSettings()
    return parse_settings(os.environ.get(SETTINGS_VARIABLE, ""), base, f"${SETTINGS_VARIABLE}")
