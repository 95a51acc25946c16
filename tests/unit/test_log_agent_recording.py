"""The recording of ``examples/log-agent`` answers only what it followed, and says that it is a recording."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "log-agent"
RECORDING: dict[str, Any] = json.loads((FOLDER / "recording.json").read_text())


def recorded_model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recorded_model", FOLDER / "recorded_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_answer_is_given_to_what_it_followed_only() -> None:
    answer_to = recorded_model().answer_to
    messages: list[dict[str, Any]] = []
    for turn in RECORDING["turns"]:
        assert answer_to([*messages, {"role": "user", "content": "something else"}], RECORDING) is None
        messages.append({"role": "user", "content": f"before {turn['after']} after"})
        assert answer_to(messages, RECORDING) == turn["message"]
        messages.append(turn["message"])
    assert answer_to([*messages, {"role": "user", "content": RECORDING["question"]}], RECORDING) is None


def test_it_says_what_it_is() -> None:
    assert "written by hand" in RECORDING["note"]
    assert (recorded_model().__doc__ or "").startswith("A RECORDING, not a model")
