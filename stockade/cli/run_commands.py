"""Commands about runs: run, validate, ps, watch, logs, approve, reject, cancel, explain."""

from __future__ import annotations

from typing import Annotated

import typer

from stockade.cli.app import Output, RunName, app, connect
from stockade.cli.output import Format

Inputs = Annotated[list[str] | None, typer.Option("--input", "-i", help="key=value, key=@file, @file.json or -")]
Target = Annotated[str, typer.Argument(metavar="FILE|NAME@VERSION")]
Comment = Annotated[str | None, typer.Option("--comment", help="kept with the decision")]


@app.command("run")
def run(
    workflow: Target,
    input: Inputs = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="show the live tree until the run ends")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="return when the run has ended")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="return when it is durable (default when piped)")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="data only")] = False,
    timeout: Annotated[float | None, typer.Option(help="seconds to wait at most; the run goes on")] = None,
    output: Output = Format.TABLE,
) -> int:
    """Submit a workflow; on a terminal, watch it. `run validate FILE` starts nothing."""
    from stockade.cli import runs

    how = "watch" if watch else "wait" if wait else "detach" if detach else "default"
    with connect() as client:
        return runs.run(client, workflow, input or [], label or [], how, quiet, timeout, output)


@app.command("run validate", hidden=True)
def validate(workflow: Target, input: Inputs = None, output: Output = Format.TABLE) -> int:
    """What a submit would meet: faults, policy's answer, where each step would run. Starts nothing."""
    from stockade.cli import validating

    with connect() as client:
        return validating.validate(client, workflow, input or [], output)


@app.command("run ls", hidden=True)
@app.command("ps")
def ps(
    status: Annotated[
        str | None, typer.Option(help="pending, running, waiting, cancelling, completed, failed, cancelled")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    output: Output = Format.TABLE,
) -> None:
    """Runs, newest first."""
    from stockade.cli import runs

    with connect() as client:
        runs.ps(client, status, limit, output)


@app.command("run show", hidden=True)
def show(name: RunName, output: Output = Format.JSON) -> None:
    """One run with its output."""
    from stockade.cli import runs

    with connect() as client:
        runs.show_run(client, name, output)


@app.command("watch")
def watch(name: RunName = "@last", output: Output = Format.TABLE) -> int:
    """Follow a run to its end; the tree stays on the screen."""
    from stockade.cli import runs

    with connect() as client:
        return runs.watch(client, name, output)


@app.command("logs")
def logs(
    name: RunName = "@last",
    path: Annotated[str | None, typer.Argument(metavar="[STEP]", help="a step's path, such as scan[3]/probe")] = None,
    stream: Annotated[str | None, typer.Option(help="stdout or stderr; else both, stderr marked with !")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the step or run ends")] = False,
    output: Output = Format.TABLE,
) -> None:
    """What steps wrote, also while they write."""
    from stockade.cli import logs as logging

    with connect() as client:
        logging.logs(client, name, path, stream, follow, output)


@app.command("approve")
def approve(
    name: RunName = "@last",
    path: Annotated[str | None, typer.Argument(metavar="[STEP]")] = None,
    comment: Comment = None,
) -> None:
    """Say yes to what waits for a person."""
    from stockade.cli import runs

    with connect() as client:
        runs.decide(client, name, path, True, comment)


@app.command("reject")
def reject(
    name: RunName = "@last",
    path: Annotated[str | None, typer.Argument(metavar="[STEP]")] = None,
    comment: Comment = None,
) -> None:
    """Say no to what waits for a person."""
    from stockade.cli import runs

    with connect() as client:
        runs.decide(client, name, path, False, comment)


@app.command("cancel")
def cancel(name: RunName, reason: Annotated[str | None, typer.Option(help="kept with the run")] = None) -> int:
    """Ask a run to end."""
    from stockade.cli import runs

    with connect() as client:
        return runs.cancel(client, name, reason)


@app.command("explain")
def explain(
    subject: Annotated[str, typer.Argument(metavar="DECISION|RUN", help="dec_…, or a run")],
    path: Annotated[str | None, typer.Argument(metavar="[STEP]")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Why policy answered so, or why a step is where it is."""
    from stockade.cli import explaining

    with connect() as client:
        explaining.explain(client, subject, path, output)
