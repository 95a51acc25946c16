"""Commands about tools: add, ls, review, test, rm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stockade.cli.app import Output, connect, existing_file, tool_app
from stockade.cli.exits import Exit, Refusal
from stockade.cli.output import Format

Many = list[str] | None


@tool_app.command("add")
def tool_add(
    words: Annotated[list[str], typer.Argument(metavar="[NAME] [FILE] | NAME [-- COMMAND…]")],
    stdio: Annotated[bool, typer.Option("--stdio", help="an MCP server that a node starts: -- COMMAND…")] = False,
    url: Annotated[str | None, typer.Option("--url", help="an MCP server over Streamable HTTP")] = None,
    env: Annotated[Many, typer.Option("--env", help="NAME=VALUE for a stdio server; never a secret")] = None,
    mount: Annotated[Many, typer.Option("--mount", help="NAME=ROOT: a node's data root as /inputs/NAME")] = None,
    tier: Annotated[Literal["jail", "container"], typer.Option(help="where a stdio server runs")] = "jail",
    image: Annotated[str, typer.Option(help="of that tier")] = "python",
    memory: Annotated[str, typer.Option(help="of a stdio server")] = "256Mi",
    header: Annotated[Many, typer.Option("--header", help="NAME=VALUE, with --url")] = None,
    secret: Annotated[Many, typer.Option("--secret", help="HEADER=SECRET or 'HEADER=Bearer SECRET'")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, max=600, help="seconds for one call of an MCP server")] = 30.0,
) -> int:
    """Register a tool or an MCP server, from a JSON file or from flags."""
    from stockade.cli import mcp_tools, resources

    if stdio and url is not None:
        raise Refusal(Exit.USAGE, "a server is reached one way", fix="give --stdio or --url")
    name, rest = words[0], words[1:]
    if stdio or url is not None:
        if url is None:
            declared = mcp_tools.process(rest, env or [], mount or [], tier, image, memory)
        else:
            declared = mcp_tools.endpoint(url, header or [], secret or [])
        with connect() as client:
            return mcp_tools.add(client, name, {**declared, "timeout": timeout}, name)
    if len(rest) > 1:
        raise Refusal(Exit.USAGE, "too many words", where=" ".join(words), fix="stockade tool add [NAME] FILE")
    with connect() as client:
        return resources.add_tool(client, existing_file(Path(rest[0] if rest else name)), name if rest else None)


@tool_app.command("ls")
def tool_ls(output: Output = Format.TABLE) -> None:
    """Registered and built-in tools, and what MCP servers offer that nobody has reviewed."""
    from stockade.cli import resources

    with connect() as client:
        resources.tools(client, output)


@tool_app.command("review")
def tool_review(
    name: Annotated[str, typer.Argument(metavar="SERVER")],
    yes: Annotated[bool, typer.Option("--yes", help="accept all that is shown")] = False,
    only: Annotated[Many, typer.Option("--only", help="TOOL")] = None,
    effect: Annotated[Many, typer.Option("--effect", help="TOOL=none, *=none, …; else immediate")] = None,
    critical: Annotated[Many, typer.Option("--critical", help="TOOL=argument,argument; else all")] = None,
    output: Output = Format.TABLE,
) -> int:
    """Look at an MCP server's tools and accept them; until then nothing can call them."""
    from stockade.cli import mcp_tools

    with connect() as client:
        return mcp_tools.review(
            client, name, yes=yes, only=only or [], effects=effect or [], critical=critical or [], form=output
        )


@tool_app.command("test")
def tool_test(
    name: Annotated[str, typer.Argument(metavar="SERVER.TOOL")],
    args: Annotated[Many, typer.Option("--args", help="key=value, @file.json or -")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds")] = 120.0,
    output: Output = Format.JSON,
) -> int:
    """Call a tool once, under policy and as you: a run of one step."""
    from stockade.cli import mcp_tools

    with connect() as client:
        return mcp_tools.test(client, name, args or [], timeout, output)


@tool_app.command("rm")
def tool_rm(name: str) -> None:
    """Forget a tool, or an MCP server with its tools."""
    with connect() as client:
        if "." in name:
            client.delete_tool(name)
        else:
            client.delete_mcp_server(name)
