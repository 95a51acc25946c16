"""Starts Stockade with its own state, has the agent answer a question about the trace, and stops again.

    python examples/log-agent/demo.py [QUESTION]

``OPENAI_BASE_URL`` names any OpenAI-compatible service, with ``OPENAI_MODEL`` and, if it wants one, ``OPENAI_API_KEY``.
Without it the agent talks to a recording (``recorded_model.py``), which knows one question only.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import recorded_model

from stockade.client import Client, ServerUnreachable

HERE = Path(__file__).resolve().parent
READY_SECONDS = 120.0
STOP_SECONDS = 40.0
STOCKADE = [sys.executable, "-m", "stockade.cli.main"]
SECRET = "log-agent-key"  # noqa: S105 - the name of a secret, not one


def main() -> int:
    """The exit code of ``stockade run``."""
    recording = json.loads((HERE / "recording.json").read_text())
    question = sys.argv[1] if len(sys.argv) > 1 else recording["question"]
    with contextlib.ExitStack() as ending:
        url, model = os.environ.get("OPENAI_BASE_URL", ""), os.environ.get("OPENAI_MODEL", recorded_model.NAME)
        if not url:
            url = ending.enter_context(_recorded())
            print(f"No OPENAI_BASE_URL: this is a recording, not a model. {recording['note']}\n", flush=True)
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="stockade-log-agent-")))
        api, key = ending.enter_context(_stockade(folder, url))
        with Client(api, api_key=key) as client:
            _await_python(client)
            _deploy(client, api, key, url, model)
            return _ask(client, api, key, question)


def _ask(client: Client, api: str, key: str, question: str) -> int:
    given = {"question": question, "trace": "data://trace/trace.csv"}
    run = [*STOCKADE, "run", str(HERE / "workflow.json"), "--watch", "-o", "json", "--input", "-"]
    environment = {**os.environ, "STOCKADE_URL": api, "STOCKADE_API_KEY": key}
    answer = subprocess.run(run, input=json.dumps(given).encode(), stdout=subprocess.PIPE, env=environment, check=False)
    if answer.returncode == 0:
        ended = json.loads(answer.stdout)
        print(f"\n{question}\n\n{ended['output']['answer']}")
        for name, value in ended["output"]["figures"].items():
            print(f"  {name:<28} {value:g}")
        artifacts = ", ".join(f"{one.name} ({one.id})" for one in client.artifacts(ended["id"]))
        print(f"artifacts  {artifacts or 'none'}")
        print(f"decisions  {ended['decisions']['total']} made, {ended['decisions']['denied']} denied")
    return answer.returncode


def _deploy(client: Client, api: str, key: str, url: str, model: str) -> None:
    """Make the service the model ``log-agent``; its key goes into the secret store and nowhere else."""
    external = {"url": url.rstrip("/"), "model": model}
    if secret := os.environ.get("OPENAI_API_KEY"):
        client.set_secret(SECRET, secret)
        external["secret"] = SECRET
    answer = httpx2.put(
        f"{api}/v1/model-deployments/log-agent",
        json={"engine": "external", "external": external},
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
    )
    if answer.is_error:
        raise SystemExit(f"the model was refused: {answer.text}")


@contextlib.contextmanager
def _recorded() -> Iterator[str]:
    with recorded_model.server(0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_address[1]}/v1"
        finally:
            serving.shutdown()
            thread.join()


@contextlib.contextmanager
def _stockade(folder: Path, model_url: str) -> Iterator[tuple[str, str]]:
    """Stockade with the trace, allowed to reach the model's host and no other; its address and key."""
    parts = urlsplit(model_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    granted = {"tenants": {"default": {"egress": {parts.hostname: [port]}}}}
    (folder / "policy").mkdir()
    (folder / "policy" / "data.json").write_text(json.dumps(granted))
    environment: Mapping[str, str] = os.environ
    if parts.scheme == "http":  # a service on this machine or next to it, which is refused unless it is listed
        environment = {**os.environ, "STOCKADE_PRIVATE_HOSTS": json.dumps([f"{parts.hostname}:{port}"])}
    command = [*STOCKADE, "up", "--port", "0", "--no-context", "--state-dir", str(folder / "state")]
    command += ["--policy", str(folder / "policy"), "--data", f"trace={HERE}"]
    banner = folder / "banner.txt"
    with banner.open("wb") as out:
        up = subprocess.Popen(command, stdout=out, env=environment)
    try:
        _until(lambda: "Ctrl-C" in banner.read_text(), up, "Stockade is up")
        words = next(line.split() for line in banner.read_text().splitlines() if line.split()[:1] == ["API"])
        key = (folder / "state" / "control" / "admin.key").read_text().strip()
        yield words[1].removesuffix("/v1"), key
    finally:
        up.terminate()
        up.wait(STOP_SECONDS)


def _await_python(client: Client) -> None:
    def ready() -> bool:
        with contextlib.suppress(ServerUnreachable):
            return any("wasm" in node.ready_images("python") for node in client.nodes())
        return False

    _until(ready, None, "Python is ready in wasm; the first time it is compiled, a minute or two")


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None, what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if process is not None and process.poll() is not None:
            raise SystemExit(f"`stockade up` ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {READY_SECONDS:.0f} s: {what}")
        time.sleep(0.05)


if __name__ == "__main__":
    raise SystemExit(main())
