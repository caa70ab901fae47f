"""What every group of commands shares: kinds of arguments, help with examples, and paths that must exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from schemas.errors import OperationError

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


class PositiveDecimal(click.ParamType[str]):
    """A decimal number kept as the text that will be signed, since a float would not say which value was meant."""

    name = "decimal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).lower()
        if not re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]+)?(e-?[0-9]{1,2})?", text) or not 0 < float(text) < 1e6:
            self.fail(f"Expected a positive number like 3 or 1e-5, got {value!r}.", param, ctx)
        return text


class Example(click.Command):
    """A command whose help keeps the line breaks of its examples."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write_paragraph()
            formatter.write("Examples:\n" + "".join(f"  {line}\n" for line in self.epilog.splitlines()))


def existing(folder: Path, file: str = "") -> Path:
    """Returns `folder` as an absolute path, if it (or `file` in it) exists.

    Raises:
        OperationError: `not-found`.
    """
    path = folder / file if file else folder
    if not path.exists():
        raise OperationError("not-found", f"Expected {path}, and it does not exist.", "Check the path.")
    return folder.absolute()
