"""``python3 deploy/components``: the real programs that Stockade can use, installed beside the checkout.

    install NAME…     get them, in order; what is here already is left alone
    status [--json]   each: present, version, path; or why not, and the command to get it
    stop              end what install started (the Docker daemon)

The standard library only: it runs before anything of ours is installed. Versions are in ``versions.toml``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from pathlib import Path

import store
from component import Component
from debian_packages import DebianPackages
from docker_engine import DockerEngine
from go_program import GoProgram
from llamacpp import LlamaCpp
from sglang import SgLang


def main(arguments: list[str]) -> int:
    """The exit code: 0 only if everything asked for is here."""
    parser = argparse.ArgumentParser(prog="deploy/components", description="Real components, outside the checkout.")
    commands = parser.add_subparsers(dest="command", required=True)
    installing = commands.add_parser("install", help="get components")
    commands.add_parser("status", help="what is here").add_argument("--json", action="store_true")
    commands.add_parser("stop", help="end the Docker daemon that install started")
    try:
        docker, components = _components()
        names = [one.name for one in components]
        installing.add_argument("names", nargs="+", choices=names)
        given = parser.parse_args(arguments)
        if given.command == "status":
            return _status(components, as_json=given.json)
        if given.command == "stop":
            docker.stop()
            return 0
        return max([_install(one) for one in components if one.name in given.names])
    except store.ComponentFailed as failed:
        print(f"error: {failed.why}\nfix:   {failed.fix}", file=sys.stderr)
        return 1


def _components() -> tuple[DockerEngine, list[Component]]:
    pinned = tomllib.loads(Path(__file__).with_name("versions.toml").read_text("utf-8"))
    docker = DockerEngine(**pinned["docker"])
    opa, runsc, compose, compose_v2 = (pinned[name] for name in ("opa", "runsc", "compose", "compose-v2"))
    version = opa["version"].removeprefix("v")
    components: list[Component] = [
        docker,
        DebianPackages("tools", **pinned["tools"], asks="--version", expects=r"debootstrap (\S+)"),
        GoProgram("runsc", **runsc, asks="--version", expects=r"(?m)^runsc version ", after=docker.reload),
        GoProgram("opa", **opa, asks="version", expects=rf"(?m)^Version: {version}$"),
        DebianPackages("compose", **compose, asks="version", expects=r"version (1\.29\S*),"),
        GoProgram("compose-v2", **compose_v2, asks="version", expects="^Docker Compose version", builds="cmd"),
        LlamaCpp(**pinned["llamacpp"]),
        SgLang(**pinned["sglang"]),
    ]
    return docker, components


def _install(component: Component) -> int:
    begun = time.monotonic()
    try:
        with store.only_one(component.name):
            before = component.state()
            if not before.path:
                store.say(component.name, f"{before.version}: installing")
            component.install()
            after = component.state()
    except (store.ComponentFailed, OSError) as failed:
        store.say(component.name, f"failed after {time.monotonic() - begun:.1f} s: {failed}")
        print(f"fix:      {getattr(failed, 'fix', 'see above')}", file=sys.stderr)
        return 1
    if not after.path:
        store.say(component.name, f"installed, but {after.why}")
        return 1
    store.say(component.name, f"{after.version} at {after.path}, {time.monotonic() - begun:.1f} s")
    return 0


def _status(components: list[Component], *, as_json: bool) -> int:
    rows = []
    for one in components:
        state = one.state()
        row = {"name": one.name, "present": bool(state.path), "version": state.version, "path": state.path}
        rows.append(row | {"detail": state.detail, "why": state.why, "fix": f"make components-{one.name}"})
    if as_json:
        print(json.dumps([row | {"fix": "" if row["present"] else row["fix"]} for row in rows], indent=2))
    for row in [] if as_json else rows:
        said = f"{row['path']} {row['detail']}".strip() if row["present"] else f"{row['why']}\n  FIX {row['fix']}"
        print(f"{'✓' if row['present'] else '✗'} {row['name']:<10} {row['version']:<12} {said}")
    return 0 if all(row["present"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
