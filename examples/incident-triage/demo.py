"""``make demo``: starts Stockade on a free port with its own state, triages this machine's own logs, stops again.

python examples/incident-triage/demo.py STATE_DIR SETUP_LOGS [--keep]

However it ends (its end, an error, Ctrl-C or SIGTERM at any moment), Stockade is stopped first, unless it is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from shards import shards

from stockade.client import Client, ServerUnreachable

HERE = Path(__file__).resolve().parent
QUESTION = "What failed on this machine while it was set up?"
READY_SECONDS = 75.0
STOP_SECONDS = 40.0
STOCKADE = [sys.executable, "-m", "stockade.cli.main"]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the demonstration to end; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> int:
    """Run the demonstration; the exit code of ``stockade run``, or 128 and the number of the signal that ended it."""
    state, setup, keep = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), "--keep" in sys.argv
    for number in SIGNALS:
        signal.signal(number, _raise_stopped)
    try:
        with contextlib.ExitStack() as ending:
            return demonstrate(state, setup, keep, ending)
    except Stopped as stopped:
        print("the demo was stopped, and Stockade with it", file=sys.stderr)
        return 128 + stopped.number


def demonstrate(state: Path, setup: Path, keep: bool, ending: contextlib.ExitStack) -> int:
    """Start, run and report; ``ending`` stops what was started."""
    began = time.monotonic()
    roots = {"setup": setup, "system": Path("/var/log")}
    roots = {name: path for name, path in roots.items() if path.is_dir() and os.access(path, os.R_OK | os.X_OK)}
    state.mkdir(parents=True, exist_ok=True)
    data = [part for name, path in roots.items() for part in ("--data", f"{name}={path}")]
    command = [*STOCKADE, "up", "--port", "0", "--no-context", "--state-dir", str(state), *data]
    with (state / "banner.txt").open("wb") as banner, _signals_held():
        # Held: a signal between the start and the next line would leave it running.
        up = subprocess.Popen(command, stdout=banner, start_new_session=True)
        ending.callback(_stop, up)
    url = _url(up, state / "banner.txt")
    key = (state / "control" / "admin.key").read_text().strip()
    with Client(url, api_key=key) as client:
        _await_python(client, up)
        given = {"question": QUESTION, "logs": shards(roots)}
        print(f"{len(given['logs'])} log files of {len(roots)} data roots: {', '.join(given['logs'])}\n", flush=True)
        run = [*STOCKADE, "run", str(HERE / "workflow.json"), "--watch", "-o", "json", "--input", "-"]
        environment = {**os.environ, "STOCKADE_URL": url, "STOCKADE_API_KEY": key}
        answer = subprocess.run(
            run, input=json.dumps(given).encode(), stdout=subprocess.PIPE, env=environment, check=False
        )
        if answer.returncode == 0:
            _report(client, json.loads(answer.stdout))
    print(f"API        {url}/v1")
    print(f"took       {time.monotonic() - began:.1f} s from start to report")
    if keep and answer.returncode == 0:
        print(f"running    stop it with: kill {up.pid}")
        print("to use it, paste these lines; then for example: stockade ps")
        print(f"  source {sys.prefix}/bin/activate")
        print(f"  export STOCKADE_URL={url}")
        print(f'  export STOCKADE_API_KEY="$(cat {state}/control/admin.key)"', flush=True)
        ending.pop_all()
    return answer.returncode


def _report(client: Client, ended: dict[str, Any]) -> None:
    print(f"\n{ended['output']['report']}")
    artifacts = ", ".join(f"{one.name} ({one.id})" for one in client.artifacts(ended["id"]))
    counts = ended["decisions"]
    print(f"run        {ended['id']} {ended['status']}")
    print(f"artifacts  {artifacts}")
    print(f"decisions  {counts['total']} made, {counts['denied']} denied")


_held: list[int] | None = None


def _raise_stopped(number: int, _frame: FrameType | None) -> None:
    if _held is None:
        raise Stopped(number)
    _held.append(number)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """A signal that comes inside is acted on at the end. Not blocked, which a child would inherit."""
    global _held
    _held = []
    try:
        yield
    finally:
        came, _held = _held, None
    if came:
        raise Stopped(came[0])


def _stop(up: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then make it. From here on nothing interrupts."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    up.terminate()
    try:
        up.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        up.kill()
        up.wait()


def _url(up: subprocess.Popen[bytes], banner: Path) -> str:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and up.poll() is None:
        for line in banner.read_text().splitlines():
            if line.startswith("API "):
                return line.split()[1].removesuffix("/v1")
        time.sleep(0.05)
    raise SystemExit("stockade up did not come up; see the lines above")


def _await_python(client: Client, up: subprocess.Popen[bytes]) -> None:
    """Wait until the node can run Python; its first start compiles it, and says how far it is."""
    deadline = time.monotonic() + READY_SECONDS
    told = ""
    while time.monotonic() < deadline and up.poll() is None:
        try:
            nodes = client.nodes()
        except ServerUnreachable:
            nodes = []
        if any("wasm" in node.ready_images("python") for node in nodes):
            return
        now = "; ".join(
            f"{tier} {image.image}: {image.detail}"
            for node in nodes
            for tier, state in node.tiers.items()
            for image in state.images
            if image.image == "python" and not image.ready
        )
        if now and now != told:
            print(f"preparing  {now}", flush=True)
            told = now
        time.sleep(0.1)
    raise SystemExit("no node became ready; run `stockade doctor`")


if __name__ == "__main__":
    sys.exit(main())
