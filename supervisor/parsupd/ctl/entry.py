"""The console script `parsupctl`: the same as `main`, sooner."""

import gc


def main() -> None:
    """Runs `parsupctl`; see `parsupd.ctl.main`.

    What a program imports stays: looking through it for garbage again and again is a seventh of the time to `--help`.
    """
    gc.disable()
    from parsupd.ctl.main import main as run  # noqa: PLC0415 - what is to be imported without collections

    gc.freeze()
    gc.enable()
    run()
