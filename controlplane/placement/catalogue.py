"""Where the bytes are that steps name: sizes and digests of artifacts and data roots, for what moving them would cost.

A prepared step names ``artifact://ID`` and ``data://NAME/REL``; nodes say what they hold by digest and by root.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from sqlmodel import Session, col, select

from controlplane.nodes.inventory import Inventory
from controlplane.runs.work import Prepared
from controlplane.store import Store
from controlplane.tables import ArtifactRow
from scheduler.demand import DataNeed, Demand

KNOWN_MOST = 16_384
ASKED_MOST = 500
NOTED_MOST = 4
"""Data sets of one root that a note names."""


class Stored(NamedTuple):
    """What a reference stands for; it never changes. ``run`` is the one whose step left it."""

    digest: str
    size_bytes: int
    run: str | None


class Catalogue:
    """One per control plane; keeps the references it looked up last."""

    def __init__(self, store: Store, inventory: Inventory) -> None:
        self._store = store
        self._inventory = inventory
        self._known: OrderedDict[tuple[str, str], Stored] = OrderedDict()

    async def locate(self, prepared: Sequence[Prepared]) -> None:
        """Fill in what is known of the bytes: the sizes of demands, and the digests of inputs they may have."""
        wanted = {(one.run.tenant, artifact) for one in prepared for artifact in _artifacts(one.demand)}
        await self._look_up(wanted - self._known.keys())
        for one in prepared:
            if one.demand.inputs or one.demand.near:
                self._locate(one)

    def located(self, tenant: str, demand: Demand) -> Demand:
        """The demand by digests, roots and sizes; an artifact that nobody knows is nowhere and left out."""
        return replace(
            demand,
            inputs=tuple(dict.fromkeys(need for one in demand.inputs if (need := self._need(tenant, one)) is not None)),
            near=tuple(dict.fromkeys(need for one in demand.near if (need := self._need(tenant, one)) is not None)),
        )

    async def known(self, tenant: str, demand: Demand) -> Demand:
        """``located`` after looking up what it names."""
        await self._look_up({(tenant, artifact) for artifact in _artifacts(demand)} - self._known.keys())
        return self.located(tenant, demand)

    def notes(self, demand: Demand) -> tuple[str, ...]:
        """What people should know of the data that a located demand names."""
        roots = dict.fromkeys(need.key for need in (*demand.inputs, *demand.near) if need.key.startswith("data://"))
        return tuple(note for root in roots if (note := self._differs(root)) is not None)

    def _locate(self, one: Prepared) -> None:
        run = one.run
        one.demand = self.located(run.tenant, one.demand)
        for grant in one.code.inputs if one.code is not None else ():
            stored = self._known.get((run.tenant, grant.artifact or ""))
            # The digest opens what a node has cached; without it the node asks, and is refused.
            if stored is not None and (stored.run == run.id or grant.artifact in run.named_artifacts):
                grant.digest, grant.size_bytes = stored.digest, stored.size_bytes

    def _need(self, tenant: str, need: DataNeed) -> DataNeed | None:
        scheme, _, rest = need.key.partition("://")
        if scheme == "artifact":
            stored = self._known.get((tenant, rest))
            return None if stored is None else DataNeed(key=stored.digest, size_bytes=stored.size_bytes)
        if scheme == "data":
            name, _, below = rest.partition("/")
            return replace(need, key=f"data://{name}", size_bytes=self._data_bytes(name, below))
        return need

    def _data_bytes(self, name: str, below: str) -> int | None:
        """A root's size, and of one file beneath it the mean of its files: nodes tell no more."""
        roots = [root for _node, root in self._inventory.data(name)]
        if not roots:
            return None
        size = max(max(0, root.size_bytes) for root in roots)
        return size // max(1, *(root.files for root in roots)) if below else size

    def _differs(self, root: str) -> str | None:
        """Whether nodes export different data under one name: which of them a step sees then depends on its place."""
        sets: dict[str, list[str]] = {}
        for node, exported in self._inventory.data(root.removeprefix("data://")):
            sets.setdefault(exported.digest, []).append(node.name)
        if len(sets) < 2:
            return None
        shown = list(sets.items())[:NOTED_MOST]
        each = ", ".join(f"{digest[:19]} on {' and '.join(names[:3])}" for digest, names in shown)
        return f"{root} is {len(sets)} different data sets: {each}; export each under a name of its own"

    async def _look_up(self, wanted: set[tuple[str, str]]) -> None:
        ids = sorted({artifact for _tenant, artifact in wanted})
        for first in range(0, len(ids), ASKED_MOST):
            for row in await self._store.read(partial(_rows, ids=ids[first : first + ASKED_MOST])):
                self._known[row.tenant, row.id] = Stored(row.digest, row.size_bytes, row.run)
        while len(self._known) > KNOWN_MOST:
            self._known.popitem(last=False)


def _rows(session: Session, ids: Sequence[str]) -> Sequence[ArtifactRow]:
    return session.exec(select(ArtifactRow).where(col(ArtifactRow.id).in_(ids))).all()


def _artifacts(demand: Demand) -> Iterable[str]:
    for need in (*demand.inputs, *demand.near):
        scheme, _, rest = need.key.partition("://")
        if scheme == "artifact":
            yield rest
