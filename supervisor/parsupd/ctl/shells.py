"""The scripts by which shells complete the commands. Also run by deploy/build_hook.py, which has nothing but click."""

import click

SHELLS = ("bash", "zsh", "fish")


def completion_script(command: str, shell: str) -> str:
    """That of click, which asks the command itself what there is; with what is wrong in it put right."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - of use here only

    kind = get_completion_class(shell)
    assert kind is not None, "SHELLS are those that click knows"
    text = kind(click.Command(command), {}, command, f"_{command.upper()}_COMPLETE").source()
    # zsh loads the file at the first completion, and calls the function of the file's name from the second one on.
    text = text.replace(f"_{command}_completion", f"_{command}") if shell == "zsh" else text
    # fish would take what is behind the first comma of a description for another field.
    return text.replace('string split ","', 'string split --max 1 ","') if shell == "fish" else text
