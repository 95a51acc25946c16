"""The command lines of model servers: from what a version's own help lists, without what a deployment may not set."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from dataplane.model_wire import MODEL_ARGUMENTS, ModelReplica, argument_problem
from dataplane.models import flags
from dataplane.models.llamacpp import LlamaCpp
from dataplane.models.server import LaunchRefused, environment
from dataplane.models.sglang import SgLang, interpreter

# As SGLang 0.5.15.post1 and a llama.cpp server print it, cut to what matters.
SGLANG = """\
usage: sglang serve [-h] --model-path MODEL_PATH
                    [--invented-in-usage X]
options:
  -h, --help            show this help message and exit
  --model-path MODEL_PATH, --model MODEL_PATH
                        The path of the model weights. See also --not-a-flag.
  --host HOST           The host of the HTTP server.
  --port PORT           The port of the HTTP server.
  --served-model-name SERVED_MODEL_NAME
  --enable-metrics      Enable log prometheus metrics.
  --device DEVICE       The device to use ('cuda', 'xpu', 'cpu').
  --attention-backend {triton,torch_native}
  --disable-overlap-schedule
  --max-total-tokens MAX_TOTAL_TOKENS
  --mem-fraction-static MEM_FRACTION_STATIC
  --context-length CONTEXT_LENGTH
  --tp-size TP_SIZE, --tensor-parallel-size TP_SIZE
  --dtype {auto,half,float16,bfloat16}
"""
LLAMACPP = """\
----- common params -----
-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        same as --threads-of-nobody)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
-m,    --model FNAME                    model path to load
-a,    --alias STRING                   set model name aliases
--host HOST                             ip address to listen (default: 127.0.0.1)
--port PORT                             port to listen (default: 8080)
--metrics                               enable prometheus compatible metrics endpoint
--device <dev1,dev2,..>                 comma-separated list of devices to use for offloading
-np,   --parallel N                     number of server slots (default: -1, -1 = auto)
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM
--jinja, --no-jinja                     whether to use jinja template engine for chat
"""


def replica(**changed: Any) -> ModelReplica:
    given = {"replica": "rep_1", "deployment": "small", "spec": "s", "engine": "sglang", "source": "m"}
    return ModelReplica(**{**given, "served_name": "small", **changed})


def pairs(command: tuple[str, ...]) -> dict[str, str | bool]:
    found: dict[str, str | bool] = {}
    for index, word in enumerate(command):
        if word.startswith("--"):
            value = command[index + 1] if index + 1 < len(command) else "--"
            found[word[2:]] = True if value.startswith("--") else value
    return found


def test_flags_are_those_the_help_lists_and_not_those_it_mentions() -> None:
    assert flags.flags_in(SGLANG) == {
        "help", "model-path", "model", "host", "port", "served-model-name", "enable-metrics", "device",
        "attention-backend", "disable-overlap-schedule", "max-total-tokens", "mem-fraction-static", "context-length",
        "tp-size", "tensor-parallel-size", "dtype",
    }  # fmt: skip
    assert {"ctx-size", "model", "parallel", "gpu-layers", "no-jinja", "metrics"} <= flags.flags_in(LLAMACPP)
    assert "threads-of-nobody" not in flags.flags_in(LLAMACPP)


@pytest.fixture
def components(tmp_path: Path) -> Path:
    """Programs that print the recorded help, and count how often they are asked."""
    environment_home = tmp_path / "env"
    (environment_home / "lib" / "python3.11" / "site-packages" / "sglang-0.5.15.post1.dist-info").mkdir(parents=True)
    llama = tmp_path / "c" / "bin" / "llama-server"
    for path, text in ((environment_home / "bin" / "python", SGLANG), (llama, LLAMACPP)):
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = f"cat <<'END'\n{text}END\n"
        version = 'if [ "$1" = --version ]; then echo "version: 7 (abc)" >&2; exit; fi\n'
        path.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\n{version}{answer}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    script = tmp_path / "c" / "bin" / "sglang"
    script.write_text(f'#!/bin/sh\nexec "{environment_home}/bin/python" -m sglang.launch_server "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m.gguf").write_text("GGUF")
    return tmp_path / "c"


def test_sglang_without_a_gpu_gets_what_a_cpu_needs_and_this_version_has(components: Path, tmp_path: Path) -> None:
    engine = SgLang(components, tmp_path / "help")
    assert engine.state().version == "0.5.15.post1"
    wanted = replica(args={"max-total-tokens": 4096, "disable-overlap-schedule": False}, context_tokens=2048)
    launch = engine.launch(wanted, tmp_path / "m", 4321)
    assert launch.command[:3] == (str(tmp_path / "env" / "bin" / "python"), "-m", "sglang.launch_server")
    assert pairs(launch.command) == {
        "model-path": str(tmp_path / "m"), "served-model-name": "small", "host": "127.0.0.1", "port": "4321",
        "enable-metrics": True, "device": "cpu", "attention-backend": "torch_native", "max-total-tokens": "4096",
        "mem-fraction-static": "0.3", "context-length": "2048",
    }  # fmt: skip
    assert launch.environment["SGLANG_USE_CPU_ENGINE"] == "1"


def test_sglang_with_gpus_takes_them_all_and_only_them(components: Path, tmp_path: Path) -> None:
    launch = SgLang(components, tmp_path / "help").launch(replica(gpus=["GPU-1", "GPU-2"]), tmp_path / "m", 1)
    told = pairs(launch.command)
    assert (told["tp-size"], "device" in told) == ("2", False)
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert "SGLANG_USE_CPU_ENGINE" not in launch.environment


def test_a_declared_gpu_is_no_gpu(components: Path, tmp_path: Path) -> None:
    launch = SgLang(components, tmp_path / "help").launch(replica(gpus=["fake-gpu-0"]), tmp_path / "m", 1)
    assert pairs(launch.command)["device"] == "cpu"
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == ""


def test_llama_cpp_shares_its_context_among_its_slots(components: Path, tmp_path: Path) -> None:
    engine = LlamaCpp(components, tmp_path / "help")
    assert engine.state().version == "7 (abc)"
    wanted = replica(engine="llamacpp", context_tokens=1000, args={"parallel": 2})
    told = pairs(engine.launch(wanted, tmp_path / "m.gguf", 5).command)
    assert (told["ctx-size"], told["parallel"], told["device"], told["alias"]) == ("2000", "2", "none", "small")
    assert "offline" not in told, "this version does not list it"
    with_gpu = pairs(engine.launch(replica(gpus=["GPU-1"]), tmp_path / "m.gguf", 5).command)
    assert (with_gpu["gpu-layers"], "device" in with_gpu) == ("999", False)


def test_a_program_is_asked_for_its_flags_once(components: Path, tmp_path: Path) -> None:
    for _ in range(3):
        SgLang(components, tmp_path / "help").launch(replica(), tmp_path / "m", 1)
    assert (tmp_path / "asked").read_text().count("asked") == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"page-size": 16}, "has no --page-size"),
        ({"host": "10.0.0.1"}, "does not set 'host'"),
        ({"api-key": "x"}, "does not set 'api-key'"),
        ({"dtype": "--trust-remote-code"}, "one word"),
        ({"dtype": "../../x"}, "one word"),
    ],
)
def test_the_node_refuses_what_is_not_to_be_set_whoever_asks(
    components: Path, tmp_path: Path, args: dict[str, Any], said: str
) -> None:
    with pytest.raises(LaunchRefused, match=said):
        SgLang(components, tmp_path / "help").launch(replica(args=args), tmp_path / "m", 1)


def test_what_is_absent_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for engine in (SgLang(tmp_path, tmp_path), LlamaCpp(tmp_path, tmp_path)):
        assert f"make components-{engine.name}" in engine.state().absent
        with pytest.raises(LaunchRefused, match="make components"):
            engine.launch(replica(), tmp_path, 1)


@pytest.mark.parametrize("source", ["nothing", "config.json"])
def test_a_model_of_another_kind_is_refused(components: Path, tmp_path: Path, source: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LaunchRefused, match="models folder"):
        SgLang(components, tmp_path / "help").launch(replica(), tmp_path / source, 1)
    with pytest.raises(LaunchRefused, match="models folder"):
        LlamaCpp(components, tmp_path / "help").launch(replica(), tmp_path / "m", 1)


def test_a_script_names_its_python(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python3.11"
    python.parent.mkdir()
    python.touch()
    for text, found in (
        (f"#!{python}\nimport sglang\n", python),
        (f'#!/bin/sh\nexec "{python}" -m sglang\n', python),
        ("#!/bin/sh\nexec python -m sglang\n", None),
        ("#!/nonexistent/bin/python\n", None),
    ):
        (tmp_path / "script").write_text(text)
        assert interpreter(tmp_path / "script") == found


def test_servers_get_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOCKADE_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "HOME"):
        monkeypatch.setenv(name, "canary")
    assert "canary" not in environment(replica(), {}).values()
    assert environment(replica(), {})["HF_HUB_OFFLINE"] == "1"


def test_no_argument_names_a_file_an_address_or_code() -> None:
    words = ("path", "host", "port", "key", "file", "remote", "template", "url")
    for engine, names in MODEL_ARGUMENTS.items():
        for name in names:
            assert not any(word in name for word in words)
            assert argument_problem(engine, name, "8") is None
