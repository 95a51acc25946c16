"""What endpoints declare as parameters: the services, the caller with a scope, and checked path parameters."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Path, Request

from controlplane.identity import Principal, require
from controlplane.services import Services
from controlplane.tools.spec import NAME_PATTERN


def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]
AnyKey = Annotated[Principal, Depends(require(None))]
Reader = Annotated[Principal, Depends(require("read"))]
Runner = Annotated[Principal, Depends(require("run"))]
Approver = Annotated[Principal, Depends(require("approve"))]
SecretWriter = Annotated[Principal, Depends(require("secret"))]
ToolWriter = Annotated[Principal, Depends(require("tool"))]
ModelWriter = Annotated[Principal, Depends(require("model"))]
Admin = Annotated[Principal, Depends(require("admin"))]


def id_pattern(prefix: str) -> str:
    """The form of ids with that prefix, as ``ids.new_id`` makes them."""
    return rf"^{prefix}_[0-9a-z]{{26}}$"


RunId = Annotated[str, Path(pattern=id_pattern("run"), examples=["run_1k0sa8r3xf6f2ye1sebmpn2kfd"])]
StepPath = Annotated[
    str, Path(min_length=1, max_length=2048, pattern=r"^[^\x00-\x1f\x7f]+$", examples=["scan[0]/probe"])
]
ArtifactId = Annotated[str, Path(pattern=id_pattern("art"))]
DecisionId = Annotated[str, Path(pattern=id_pattern("dec"))]
KeyId = Annotated[str, Path(pattern=id_pattern("key"))]
NodeId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
SecretName = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_.-]*$", max_length=64, examples=["tickets-api"])]
ToolName = Annotated[str, Path(pattern=NAME_PATTERN, max_length=128, examples=["tickets.create"])]
