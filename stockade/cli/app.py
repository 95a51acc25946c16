"""The tree of commands. A command's own module is imported when it runs, so that none pays for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockade.cli.exits import Exit, Refusal, of_no_key, of_problem, of_unreachable, show
from stockade.cli.output import Format

if TYPE_CHECKING:
    from stockade.client import Client
    from stockade.contexts import Context

app = typer.Typer(
    name="stockade", help="Stockade runs what agents write.", no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode=None,
)  # fmt: skip
node_app = typer.Typer(help="Run a node, or look at nodes.", invoke_without_command=True, rich_markup_mode=None)
policy_app = typer.Typer(help="Test and check policy.", no_args_is_help=True, rich_markup_mode=None)
secret_app = typer.Typer(help="Secrets: written, never read.", no_args_is_help=True, rich_markup_mode=None)
tool_app = typer.Typer(help="Tools that steps may call.", no_args_is_help=True, rich_markup_mode=None)
workflow_app = typer.Typer(help="Published workflows.", no_args_is_help=True, rich_markup_mode=None)
artifact_app = typer.Typer(help="Files that runs left.", no_args_is_help=True, rich_markup_mode=None)
image_app = typer.Typer(help="Images for the tier container, here.", no_args_is_help=True, rich_markup_mode=None)
model_app = typer.Typer(help="Models and what serves them.", no_args_is_help=True, rich_markup_mode=None)
context_app = typer.Typer(help="Which server this command talks to.", no_args_is_help=True, rich_markup_mode=None)
for _name, _child in (
    ("node", node_app), ("policy", policy_app), ("secret", secret_app), ("tool", tool_app),
    ("workflow", workflow_app), ("artifact", artifact_app), ("image", image_app), ("context", context_app),
    ("model", model_app),
):  # fmt: skip
    app.add_typer(_child, name=_name)

Output = Annotated[Format, typer.Option("-o", "--output", help="table, wide, json, jsonl, yaml or name")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="an id, a unique prefix of one, or @last")]


@dataclass(kw_only=True)
class _Flags:
    url: str | None = None
    api_key: str | None = None
    context: Context | None = None


_flags = _Flags()


@app.callback()
def options(
    url: Annotated[str | None, typer.Option(help="the control plane; else STOCKADE_URL, else the context")] = None,
    api_key: Annotated[str | None, typer.Option(help="else STOCKADE_API_KEY, else the context")] = None,
) -> None:
    """Stockade runs what agents write."""
    _flags.url, _flags.api_key, _flags.context = url, api_key, None


def connect() -> Client:
    """A client of the server this call is about."""
    from stockade.cli.contexts import resolve
    from stockade.client import Client

    context = _flags.context = resolve(_flags.url, _flags.api_key)
    return Client(context.url, api_key=context.api_key)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line; every failure becomes four lines and an exit code."""
    from stockade.cli import (  # noqa: F401  (they add their commands)
        model_commands,
        run_commands,
        server_commands,
        tool_commands,
    )

    try:
        result: Any = typer.main.get_command(app)(list(arguments), prog_name="stockade", standalone_mode=False)
    except Refusal as refusal:
        show(refusal)
        return int(refusal.code)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        return int(Exit.FAILED)
    except Exception as error:
        known = _refusal(error)
        show(known)
        return int(known.code)
    return int(result) if isinstance(result, int) else 0


def _refusal(error: Exception) -> Refusal:
    """What a failure is to the person. Raises it again where it is a fault of ours."""
    from stockade.client.errors import ServerUnreachable, StockadeError

    if isinstance(error, StockadeError):
        if error.status == 401 and _flags.context is not None:
            return of_no_key(error, _flags.context)
        return of_problem(error)
    if isinstance(error, ServerUnreachable):
        return of_unreachable(error)
    # Typer carries its own click, whose classes are private: its errors are known by their shape.
    message = getattr(error, "format_message", None)
    if message is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", "stockade")
        return Refusal(Exit.USAGE, message() or "usage", where=command, fix=f"{command} --help")
    if type(error).__name__ == "Abort":
        return Refusal(Exit.INTERRUPTED, "interrupted")
    raise error


def existing_file(path: Path) -> Path:
    """``path`` if it is a file."""
    if not path.is_file():
        raise Refusal(Exit.NOT_FOUND, "no such file", where=str(path))
    return path
