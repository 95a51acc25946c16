"""A secret of an HTTP tool is in the outgoing request and nowhere else: memory, files, database, logs, events.

The tool server is hostile: it sends the secret back, plain and encoded, in its answer. While the guest waits for a
second answer, the memory of every sandbox process is read from the host, which needs root; all else does not.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from sandboxes.container.engine import Engine
from tests import container_engine
from tests.acceptance.cluster import Cluster, wait_for

CANARY = 'canary-5d2f"9b/7c+41\\e8=4a06&'
"""Has characters that JSON escapes and addresses encode, so that those encodings are other texts than itself."""
SOURCE = """
import os, stockade_tools as tools
first = tools.mirror.read(id="one")
open("/outputs/answer.txt", "w").write(repr(first) + repr(dict(os.environ)))
print(first)
second = tools.mirror.hold(id="two")
[first, second]
"""


def base64_cores(value: bytes) -> list[bytes]:
    """What any base64 of a text that holds ``value`` has in it, wherever in the text it is: one for each alignment.

    The first and last characters also encode bits of the neighbours and are left out.
    """
    cores = []
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + value + b"x" * (-(before + len(value)) % 3))
        whole = encoded[-(-before * 8 // 6) : (before + len(value)) * 8 // 6]
        cores += [whole, whole.translate(bytes.maketrans(b"+/", b"-_"))]
    return cores


def needles() -> list[bytes]:
    """The value, and what it looks like in the encodings that a mirror could send or a log could use."""
    value = CANARY.encode()
    escaped = json.dumps(CANARY)[1:-1]
    texts = [
        escaped,
        json.dumps(escaped)[1:-1],
        escaped.replace("/", "\\/"),
        repr(CANARY)[1:-1],
        quote(CANARY),
        quote(CANARY, safe=""),
        quote_plus(CANARY),
        value.hex(),
        value.hex().upper(),
    ]
    return list(dict.fromkeys([value, *(text.encode() for text in texts), *base64_cores(value)]))


@pytest.mark.parametrize("prefix", [b"", b"B", b"Be", b"Bearer "])
def test_a_needle_is_found_at_every_alignment(prefix: bytes) -> None:
    encoded = base64.b64encode(prefix + CANARY.encode() + b" and more")
    assert sum(core in encoded for core in needles()) == 1


def memory_of(pid: int) -> Iterator[bytes]:
    """Readable private memory of a process."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            span, permissions, *_rest = line.split()
            if not permissions.startswith("r") or "[v" in line:
                continue
            low, high = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(low)
                yield memory.read(min(high - low, 1 << 28))
            except (OSError, ValueError, OverflowError):
                continue


def processes_below(root: int) -> list[int]:
    """Every process below one; the node daemon itself, for one, holds the lease and is no guest."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: list[int] = []
    for pid in parents:
        above = parents.get(pid)
        while above and above != root:
            above = parents.get(above)
        if above == root:
            found.append(pid)
    return found


def container_processes(node_folder: Path) -> list[int]:
    """Those of the node's containers, which are no children of its daemon."""
    engine = Engine()
    try:
        owned = engine.owned((node_folder / "sandboxes" / "containers" / "owner").read_text())
        roots = [int(engine.client().inspect_container(container)["State"]["Pid"]) for container, _, _ in owned]
    finally:
        engine.close()
    return [pid for root in roots for pid in (root, *processes_below(root))]


def check_memory(processes: list[int]) -> None:
    """No sandbox process has it."""
    read = set()
    for pid in processes:
        with suppress(ProcessLookupError, FileNotFoundError):  # it has ended, with its memory
            for block in memory_of(pid):
                read.add(pid)
                assert not any(needle in block for needle in needles()), f"in the memory of process {pid}"
    assert len(read) >= 2, processes


def tool(url: str) -> dict[str, Any]:
    properties = {"id": {"type": "string"}}
    return {
        "kind": "http",
        "description": "Answers with what it was sent.",
        "effect": "none",
        "input": {"type": "object", "required": ["id"], "properties": properties, "additionalProperties": False},
        "http": {"method": "GET", "url": url},
        "secrets": [{"name": "mirror-key", "header": "Authorization", "format": "Bearer {}"}],
    }


ROOT = os.geteuid() == 0
WITH_MEMORY = pytest.mark.skipif(not ROOT, reason="reading the memory of other users' processes needs root")
WITHOUT = pytest.mark.skipif(ROOT, reason="root looks at the memory too, in the same test")


@pytest.mark.parametrize("memory", [pytest.param(True, marks=WITH_MEMORY), pytest.param(False, marks=WITHOUT)])
@pytest.mark.parametrize("tier", ["wasm", "jail", "container"])
def test_a_secret_is_found_nowhere(
    tier: str, memory: bool, tmp_path: Path, httpserver: HTTPServer, make_cluster: Callable[..., Cluster]
) -> None:
    if tier == "container":
        container_engine.require()
    seen: list[str] = []
    holding, release = threading.Event(), threading.Event()

    def mirror(request: Request) -> Response:
        given = request.headers["Authorization"]
        seen.append(given)
        sent = {"you": given, "in-text": f"you sent {given}!", "twice": json.dumps(given), "url": quote(given, safe="")}
        sent |= {f"b64-{n}": base64.b64encode(b"x" * n + given.encode()).decode() for n in range(3)}
        return Response(json.dumps(sent), content_type="application/json")

    def hold(request: Request) -> Response:
        holding.set()
        assert release.wait(60)
        return mirror(request)

    httpserver.expect_request("/mirror/one").respond_with_handler(mirror)
    httpserver.expect_request("/hold/two").respond_with_handler(hold)
    policy = tmp_path / "policy"
    policy.mkdir()
    secrets = {"mirror-key": {"mirror.read": [httpserver.host], "mirror.hold": [httpserver.host]}}
    granted = {"secrets": secrets, "egress": {httpserver.host: [httpserver.port]}}
    (policy / "data.json").write_text(json.dumps({"tenants": {"default": granted}}))
    private = json.dumps([f"{httpserver.host}:{httpserver.port}"])
    cluster = make_cluster(settings={"STOCKADE_POLICY_DIR": str(policy), "STOCKADE_PRIVATE_HOSTS": private})
    cluster.start_control_plane()
    # Looking at what gVisor has mapped would fill it, and the sandbox's limit with it.
    cluster.start_node(arguments=["--container-runtime", "runc"] if tier == "container" else [])
    with cluster.client() as client:
        client.set_secret("mirror-key", CANARY)
        client.put_tool("mirror.read", tool(httpserver.url_for("/mirror/{id}")))
        client.put_tool("mirror.hold", tool(httpserver.url_for("/hold/{id}")))
        step = {"id": "ask", "code": {"python": SOURCE, "tools": ["mirror.*"]}, "secrets": ["mirror-key"]}
        steps = [{**step, "sandbox": {"tier": tier}}]
        run = client.submit({"stockade": "1", "name": "canary", "steps": steps})
        wait_for(lambda: holding.is_set() or client.run(run.id).status == "failed", "the second call being made")
        try:
            assert holding.is_set(), client.run(run.id).error
            if memory:
                check_memory(processes_below(cluster.pid("node-a")))
                if tier == "container":
                    check_memory(container_processes(cluster.folder / "node-a"))
        finally:
            release.set()
        ended = client.wait(run.id)
        assert ended.status == "completed", ended.error
        assert seen == [f"Bearer {CANARY}"] * 2
        shown = [ended.model_dump_json(), *(event.model_dump_json() for event in client.events(run.id))]
        shown += [one.model_dump_json() for one in client.decisions(run.id)]
        shown += [client.logs(run.id, "ask")]
        found = [name for needle in needles() for name in shown if needle.decode() in name]
        assert found == []
        artifacts = [client.artifact_content(one.id) for one in client.artifacts(run.id)]
        assert artifacts
        assert not any(needle in content for needle in needles() for content in artifacts)
    cluster.stop()
    for path in cluster.folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert not any(needle in content for needle in needles()), f"in the file {path}"
