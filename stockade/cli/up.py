"""``stockade up``: control plane and node as child processes of one that keeps them alive, on loopback.

    this process, from then on stockade.cli.supervisor ─┬─ python -m controlplane            restarted if it dies
                                                         └─ python -m stockade.cli.main node  joins with a fresh token

SIGTERM and SIGINT end both children, the node first, so that it can hand back what it holds. If this process is
killed, the kernel kills both; what they left is taken up by the next start.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from controlplane.private_hosts import parse
from controlplane.state_lock import AlreadyRunning, hold_state
from stockade.cli import inputs, opa_child, places, policies
from stockade.cli.exits import Exit, Refusal
from stockade.cli.supervisor import Plan, already_up


def plan(
    *, port: int, state_dir: Path | None, data: list[str], policy: Path | None, private_hosts: list[str], node: bool,
    keep_context: bool, policy_engine: str = "embedded", opa_url: str | None = None, opa_token_file: Path | None = None,
) -> Plan:  # fmt: skip
    """Checked before anything starts: roots and OPA exist, nobody has the state folder, the port is free."""
    roots = inputs.pairs(data, "path")
    for name, path in roots.items():
        if not Path(path).is_dir():
            raise Refusal(Exit.NOT_FOUND, "no such folder to export", where=f"--data {name}={path}")
    if policy is not None and not policy.is_dir():
        raise Refusal(Exit.NOT_FOUND, "no such folder of rules", where=f"--policy {policy}")
    if policy is not None:
        policies.load(policy)  # the control plane would refuse it as well, but into its log
    try:
        hosts = ",".join(private_hosts)
        parse(hosts)
    except ValueError as error:
        raise Refusal(Exit.USAGE, "no address of a private host", where="--private-host", why=str(error)) from None
    folder = places.state_dir(state_dir)
    opa = _opa(folder, policy_engine, opa_url, opa_token_file)
    try:
        with hold_state(folder, "", patience_seconds=0):
            pass  # before the port: the one that has the folder likely has the port as well
    except AlreadyRunning as running:
        raise already_up(running) from None
    except OSError as error:
        why = error.strerror or str(error)
        fix = "choose another place with --state-dir"
        raise Refusal(Exit.FAILED, "the state folder cannot be used", where=str(folder), why=why, fix=fix) from None
    return Plan(
        port=_free(port),
        state_dir=str(folder),
        data={name: str(Path(path).absolute()) for name, path in roots.items()},
        policy=None if policy is None else str(policy.absolute()),
        private_hosts=hosts,
        node=node,
        keep_context=keep_context,
        opa=opa,
        opa_url=opa_url,
        opa_token_file=None if opa_token_file is None else str(opa_token_file.absolute()),
    )


def become(planned: Plan) -> NoReturn:
    """Put the supervisor in this process's place; pid and signals stay."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    command = planned.command()
    os.execv(command[0], command)  # noqa: S606 - our own interpreter


def _opa(folder: Path, policy_engine: str, url: str | None, token_file: Path | None) -> str | None:
    """The program to start, if one is to be started."""
    if policy_engine != "opa":
        if url is not None or token_file is not None:
            raise Refusal(Exit.USAGE, "an OPA is named and not used", fix="add --policy-engine opa")
        return None
    if url is None:
        if token_file is not None:
            raise Refusal(Exit.USAGE, "a token without an OPA", where="--opa-token-file", fix="add --opa-url URL")
        opa_child.socket(folder)
        return str(opa_child.program())
    if token_file is None or not token_file.is_file():
        fix = "openssl rand -hex 32 > FILE, the same that OPA has as STOCKADE_OPA_TOKEN"
        raise Refusal(Exit.USAGE, "an OPA elsewhere needs a token", where="--opa-token-file FILE", fix=fix)
    return None


def _free(port: int) -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            why = error.strerror or str(error)
            raise Refusal(
                Exit.FAILED, "the port is taken", where=f"127.0.0.1:{port}", why=why, fix="stockade up --port 0"
            ) from None
        return int(listener.getsockname()[1])
