"""What every benchmark reports alike: percentiles, the host, JSON or a table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path


def percentile(samples: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest sample with at least ``share`` (0 to 1) of all at or below it."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank = -(-share * len(ordered) // 1)
    return ordered[max(0, min(len(ordered) - 1, int(rank) - 1))]


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Count, and p50, p95, p99 and maximum in milliseconds."""
    return {
        "count": len(seconds),
        "p50_ms": round(percentile(seconds, 0.50) * 1000, 4),
        "p95_ms": round(percentile(seconds, 0.95) * 1000, 4),
        "p99_ms": round(percentile(seconds, 0.99) * 1000, 4),
        "max_ms": round(max(seconds) * 1000, 4),
    }


def host() -> dict[str, object]:
    """What numbers depend on. Names no machine."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def print_json(report: Mapping[str, object]) -> None:
    print(json.dumps(report, indent=2))


def print_table(report: Mapping[str, object]) -> None:
    """One line per number, nested names joined with dots."""
    rows = list(_flat("", report))
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _flat(prefix: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in _flat(f"{prefix}.{key}" if prefix else str(key), inner)]
    if isinstance(value, list):
        return [row for index, inner in enumerate(value) for row in _flat(f"{prefix}[{index}]", inner)]
    return [(prefix, value)]
