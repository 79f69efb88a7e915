"""The application that commands register with."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="onnx-prune",
    help="Prune ONNX models at graph level, prove the result, compile it.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 3 a check did not hold.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def examples(*commands: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(["Examples:", *(f"`onnx-prune {command}`" for command in commands)])
