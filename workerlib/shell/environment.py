"""What the environment says about connections."""

import os

from workerlib.spec import RpcSettings, parse_settings

SETTINGS_VARIABLE = "WORKERLIB_RPC_SETTINGS"


def effective_settings(settings: RpcSettings | None = None) -> RpcSettings:
    """The environment's WORKERLIB_RPC_SETTINGS over the argument over the defaults. Raises UsageError."""
    return parse_settings(os.environ.get(SETTINGS_VARIABLE, ""), settings or RpcSettings(), f"${SETTINGS_VARIABLE}")
