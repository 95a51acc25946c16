"""Commands about the system: up, doctor, node, policy, secret, workflow, artifact, image, context."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from stockade.cli.app import (
    Output,
    app,
    artifact_app,
    connect,
    context_app,
    existing_file,
    image_app,
    node_app,
    policy_app,
    secret_app,
    workflow_app,
)
from stockade.cli.output import Format

DataRoots = Annotated[list[str] | None, typer.Option("--data", help="NAME=PATH, exported as data://NAME/")]
ContainerRuntime = Literal["runc", "runsc"]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="default: ~/.local/share/stockade")]


class PolicyEngineName(StrEnum):
    """What evaluates the rules."""

    EMBEDDED = "embedded"
    OPA = "opa"


@app.command("up")
def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 7373,
    state_dir: StateDir = None,
    data: DataRoots = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="rules and data over the shipped ones")] = None,
    node: Annotated[bool, typer.Option("--node/--no-node", help="also run a node on this machine")] = True,
    private_host: Annotated[
        list[str] | None,
        typer.Option("--private-host", help="HOST:PORT that HTTP tools may reach though it is private or loopback"),
    ] = None,
    keep_context: Annotated[bool, typer.Option("--context/--no-context", help="write the context file")] = True,
    policy_engine: Annotated[PolicyEngineName, typer.Option(help="opa: an OPA server")] = PolicyEngineName.EMBEDDED,
    opa_url: Annotated[str | None, typer.Option(help="an OPA that runs already; else one is started")] = None,
    opa_token_file: Annotated[Path | None, typer.Option(help="the secret shared with it")] = None,
) -> None:
    """One machine: control plane, SQLite and a node, on loopback, until Ctrl-C."""
    from stockade.cli import up as starting

    starting.become(
        starting.plan(
            port=port, state_dir=state_dir, data=data or [], policy=policy, private_hosts=private_host or [],
            node=node, keep_context=keep_context, policy_engine=policy_engine, opa_url=opa_url,
            opa_token_file=opa_token_file,
        )
    )  # fmt: skip


@app.command("doctor")
def doctor(output: Output = Format.TABLE, state_dir: StateDir = None) -> int:
    """What this host can do; every ✗ has a FIX line."""
    from stockade.cli import doctor as doctoring

    return doctoring.examine(output, state_dir)


@node_app.callback()
def node(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="the control plane: https, or http on loopback")] = None,
    join: Annotated[str | None, typer.Option("--join", help="a join token; - reads it from standard input")] = None,
    join_token_file: Annotated[Path | None, typer.Option(help="a file with the join token")] = None,
    name: Annotated[str | None, typer.Option(help="default: the host's name")] = None,
    data: DataRoots = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="NAME=VALUE")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="attempts at one time")] = None,
    fake_gpus: Annotated[
        str | None,
        typer.Option(
            envvar="STOCKADE_FAKE_GPUS",
            metavar="COUNTxMEMORY",
            help="declare GPUs that do not exist, for tests: 4x80Gi",
        ),
    ] = None,
    drain_seconds: Annotated[float, typer.Option(min=0, help="how long SIGTERM lets attempts finish")] = 30.0,
    state_dir: StateDir = None,
    cache_dir: Annotated[Path | None, typer.Option(help="prepared images; default: ~/.cache/stockade/images")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="a private certificate authority")] = None,
    models: Annotated[Path | None, typer.Option(help="models to serve; default: those of the components")] = None,
    lifeline: Annotated[int, typer.Option(help="a process id: model servers end when it does", hidden=True)] = 0,
    container_runtime: Annotated[
        ContainerRuntime | None,
        typer.Option(envvar="STOCKADE_CONTAINER_RUNTIME", help="default: runsc where the engine has it, else runc"),
    ] = None,
    listen: Annotated[str | None, typer.Option(help="IP:PORT to take connections at, beside the tunnel")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="of --listen; needed away from loopback")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="its key, where it is in another file")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="whose certificates those who connect must show")] = None,
) -> int:
    """Run a node daemon until SIGTERM (drains) or a second signal."""
    if context.invoked_subcommand is not None:
        return 0
    from stockade.cli.node import Options, serve

    return serve(
        Options(
            url=url, join=join, join_token_file=join_token_file, name=name, data=tuple(data or ()),
            labels=tuple(label or ()), slots=slots, drain_seconds=drain_seconds, state_dir=state_dir,
            cache_dir=cache_dir, ca_file=ca_file, fake_gpus=fake_gpus,
            container_runtime=container_runtime, models=models, lifeline=lifeline,
            listen=listen, tls_certificate=tls_certificate, tls_key=tls_key, client_ca=client_ca,
        )
    )  # fmt: skip


@node_app.command("ls")
def node_ls(output: Output = Format.TABLE) -> None:
    """Nodes, their tiers, data and load."""
    from stockade.cli import resources

    with connect() as client:
        resources.nodes(client, output)


@node_app.command("rm")
def node_rm(name: str) -> None:
    """Forget a node that is lost or runs nothing."""
    with connect() as client:
        client.delete_node(name)


@node_app.command("join-token")
def join_token(output: Output = Format.TABLE) -> None:
    """A token, and the line to paste on another host."""
    from stockade.cli import resources

    with connect() as client:
        resources.join_token(client, output)


@node_app.command("prepare")
def node_prepare(
    image: Annotated[str, typer.Argument(help="such as python-data")],
    cache_dir: Annotated[Path | None, typer.Option(help="default: ~/.cache/stockade/images")] = None,
) -> int:
    """Compile an image for this host's nodes now; takes a minute or two, once."""
    from stockade.cli import node as node_module

    return node_module.prepare(image, cache_dir)


@image_app.command("build")
def image_build(
    name: str,
    context: Annotated[Path | None, typer.Argument(metavar="[CONTEXT]", help="a folder with a Dockerfile")] = None,
    file: Annotated[str, typer.Option("--file", "-f", help="relative to the context")] = "Dockerfile",
    build_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE")] = None,
    network: Annotated[str | None, typer.Option(help="of the build only, such as none")] = None,
    packages: Annotated[list[str] | None, typer.Option(help="Debian packages instead, such as python3,git")] = None,
    suite: Annotated[str | None, typer.Option(help="a Debian release, default bookworm")] = None,
    mirror: Annotated[str | None, typer.Option(help="of Debian, default debootstrap's own")] = None,
) -> int:
    """From a Dockerfile, or from Debian packages where no image registry is reachable."""
    from stockade.cli import images

    return images.build(name, context, file, build_arg or [], network, packages or [], suite, mirror)


@image_app.command("import")
def image_import(name: str, archive: Annotated[Path, typer.Argument(help="docker save's, or OCI")]) -> int:
    """From a docker or OCI archive."""
    from stockade.cli import images

    return images.load(name, archive)


@image_app.command("ls")
def image_ls(output: Output = Format.TABLE) -> None:
    """Names and digests."""
    from stockade.cli import images

    images.ls(output)


@image_app.command("rm")
def image_rm(name: str) -> None:
    """Forget an image."""
    from stockade.cli import images

    images.rm(name)


@policy_app.command("test")
def policy_test(directory: Annotated[Path | None, typer.Argument(metavar="[DIR]")] = None) -> int:
    """Run every test_ rule, with coverage. Needs no server."""
    from stockade.cli import policies

    return policies.test(directory)


@policy_app.command("check")
def policy_check(directory: Annotated[Path | None, typer.Argument(metavar="[DIR]")] = None) -> int:
    """Load a bundle as the control plane would, and say its revision. Needs no server."""
    from stockade.cli import policies

    return policies.check(directory)


@policy_app.command("decisions")
def policy_decisions(
    run: Annotated[str | None, typer.Option(help="of one run")] = None,
    denied: Annotated[bool, typer.Option("--denied", help="only refusals")] = False,
    output: Output = Format.TABLE,
) -> None:
    """The decision log."""
    from stockade.cli import explaining

    with connect() as client:
        explaining.decisions(client, run, denied, output)


@secret_app.command("set")
def secret_set(name: str) -> None:
    """Store a secret; the value is typed unseen, or read from standard input when piped."""
    from stockade.cli import resources

    with connect() as client:
        resources.set_secret(client, name)


@secret_app.command("ls")
def secret_ls(output: Output = Format.TABLE) -> None:
    """Names of secrets."""
    from stockade.cli import resources

    with connect() as client:
        resources.secrets(client, output)


@secret_app.command("rm")
def secret_rm(name: str) -> None:
    """Forget a secret."""
    with connect() as client:
        client.delete_secret(name)


@workflow_app.command("add")
def workflow_add(file: Path) -> None:
    """Publish a workflow under its name@version."""
    from stockade.cli import resources

    with connect() as client:
        resources.add_workflow(client, existing_file(file))


@workflow_app.command("ls")
def workflow_ls(output: Output = Format.TABLE) -> None:
    """Published workflows."""
    from stockade.cli import resources

    with connect() as client:
        resources.workflows(client, output)


@artifact_app.command("ls")
def artifact_ls(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]")] = None, output: Output = Format.TABLE
) -> None:
    """Artifacts, of one run or all."""
    from stockade.cli import resources

    with connect() as client:
        resources.artifacts(client, run, output)


@artifact_app.command("get")
def artifact_get(
    artifact: Annotated[str, typer.Argument(metavar="ID")],
    file: Annotated[Path | None, typer.Option("-O", "--output-file", help="else standard output")] = None,
) -> None:
    """An artifact's bytes."""
    from stockade.cli import resources

    with connect() as client:
        resources.get_artifact(client, artifact, file)


@context_app.command("show")
def context_show(output: Output = Format.TABLE) -> None:
    """Server, and where its address and key come from."""
    from stockade.cli import resources

    resources.show_context(output)


@context_app.command("set")
def context_set(
    url: Annotated[str | None, typer.Option("--url", help="default: the server used now")] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", help="- reads it from standard input")] = None,
) -> None:
    """Keep a server and key for later calls."""
    from stockade.cli import resources

    resources.set_context(url, api_key)
