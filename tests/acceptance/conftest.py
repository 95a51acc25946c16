"""The cluster acceptance tests share, and a way to have one of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stockade.client import Client
from tests.acceptance.cluster import REPOSITORY, Cluster


@pytest.fixture(scope="session")
def image_cache() -> Path:
    """Where prepared images are kept between test runs, so that the compile happens once per checkout."""
    path = Path(os.environ.get("STOCKADE_TEST_CACHE", REPOSITORY / ".stockade" / "test-cache"))
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def make_cluster(tmp_path: Path, image_cache: Path) -> Iterator[Callable[..., Cluster]]:
    """Make clusters for one test, which may kill their processes; all end with the test."""
    made: list[Cluster] = []

    def make(**options: object) -> Cluster:
        folder = tmp_path / f"cluster-{len(made)}"
        folder.mkdir()
        cluster = Cluster(folder, cache_dir=image_cache, **options)  # type: ignore[arg-type]
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.stop()


@pytest.fixture(scope="session")
def data_roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Roots the shared cluster's node exports: ``examples`` (files of this repository) and a trace, of which the
    repository has an excerpt; ``STOCKADE_TRACE`` is the folder of the whole."""
    roots = {"examples": REPOSITORY / "examples"}
    if whole := os.environ.get("STOCKADE_TRACE"):
        return roots | {"trace": Path(whole)}
    excerpt = tmp_path_factory.mktemp("trace")
    shutil.copy(REPOSITORY / "examples" / "log-agent" / "trace.csv", excerpt / "AzureLLMInferenceTrace_conv.csv")
    return roots | {"trace": excerpt}


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, image_cache: Path, data_roots: dict[str, Path]
) -> Iterator[Cluster]:
    """One control plane and one node for the whole session; tests must not kill its processes."""
    with Cluster(tmp_path_factory.mktemp("cluster"), cache_dir=image_cache) as shared:
        shared.start_control_plane()
        shared.start_node("node-a", data=data_roots)
        yield shared


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """An administrator's client of the shared cluster."""
    with cluster.client() as connected:
        yield connected
