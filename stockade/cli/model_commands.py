"""``stockade model``: say what is to serve a model, and see how far it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stockade.cli.app import Output, connect, model_app
from stockade.cli.output import Format

Name = Annotated[str, typer.Argument(metavar="NAME")]


@model_app.command("apply")
def model_apply(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help='JSON: {"name": …, "engine": …}')] = None,
    name: Annotated[str | None, typer.Option(help="what callers say; with a file, instead of the name in it")] = None,
    engine: Annotated[str | None, typer.Option(help="sglang, llamacpp or external")] = None,
    source: Annotated[str | None, typer.Option(help="a name in the models folder of the nodes")] = None,
    replicas: Annotated[int | None, typer.Option(min=0)] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="of each replica")] = None,
    memory: Annotated[str | None, typer.Option(help="what each replica takes of its node, such as 4Gi")] = None,
    arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, a flag of the server; NAME is a bare one")] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE that the nodes must have")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="another name it answers to")] = None,
    modality: Annotated[list[str] | None, typer.Option(help="text, image, audio or embeddings")] = None,
    context_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    url: Annotated[str | None, typer.Option(help="of an external service, such as https://models.example/v1")] = None,
    model: Annotated[str | None, typer.Option(help="what the external service calls it")] = None,
    secret: Annotated[str | None, typer.Option(help="the secret with the external service's key")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="until it is ready as specified")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="seconds, of --wait")] = 900.0,
    output: Output = Format.TABLE,
) -> int:
    """Create or change a deployment, from a file or from flags. Whatever is not said has its default."""
    from stockade.cli import models

    flags = {
        "engine": engine, "source": source, "replicas": replicas, "gpus": gpus, "context_tokens": context_tokens,
        "memory_bytes": models.memory_bytes(memory), "args": models.arguments(arg), "labels": models.labels(label),
        "aliases": alias, "modalities": modality, "external": models.external(url, model, secret),
    }  # fmt: skip
    declared = models.declared(file, name, {key: value for key, value in flags.items() if value is not None})
    with connect() as client:
        return models.apply(client, *declared, wait=timeout if wait else None, form=output)


@model_app.command("ls")
def model_ls(output: Output = Format.TABLE) -> None:
    """Deployments, and whether they are ready."""
    from stockade.cli import models

    with connect() as client:
        models.ls(client, output)


@model_app.command("get")
def model_get(name: Name, output: Output = Format.TABLE) -> None:
    """One deployment: its replicas, and what keeps it from being as it should."""
    from stockade.cli import models

    with connect() as client:
        models.get(client, name, output)


@model_app.command("logs")
def model_logs(name: Name, replica: Annotated[str | None, typer.Option(help="default: the oldest")] = None) -> None:
    """The last 64 KiB that a replica's server wrote."""
    from stockade.cli import models

    with connect() as client:
        models.logs(client, name, replica)


@model_app.command("rm")
def model_rm(name: Name) -> None:
    """Forget a deployment. Its servers answer what they have, then end."""
    with connect() as client:
        client.delete_model_deployment(name)
