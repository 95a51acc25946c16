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
from stockade.cli import inputs, places, policies
from stockade.cli.exits import Exit, Refusal
from stockade.cli.supervisor import Plan, already_up


def plan(
    *, port: int, state_dir: Path | None, data: list[str], policy: Path | None, private_hosts: list[str], node: bool,
    keep_context: bool,
) -> Plan:  # fmt: skip
    """Checked before anything starts: the roots exist, nobody has the state folder, the port is free."""
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
    )


def become(planned: Plan) -> NoReturn:
    """Put the supervisor in this process's place; pid and signals stay."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    command = planned.command()
    os.execv(command[0], command)  # noqa: S606 - our own interpreter


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
