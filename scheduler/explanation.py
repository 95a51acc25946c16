"""What a placement decision says about itself: nodes per filter, the best three with their costs, what blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from json.encoder import encode_basestring_ascii as quoted


class ReasonCode(StrEnum):
    """Why a node, or all of them, cannot take a demand. The order of members is the order of the filters.

    The last is no filter: some can, and waiting for another costs less.
    """

    NO_NODES = "no_nodes"
    CORDONED = "cordoned"
    DRAINING = "draining"
    LOST = "lost"
    LABELS = "labels"
    TIER_UNAVAILABLE = "tier_unavailable"
    IMAGE_NOT_READY = "image_not_ready"
    DATA_NOT_EXPORTED = "data_not_exported"
    GPU_TIER = "gpu_tier"
    GPU = "gpu"
    CPU = "cpu"
    MEMORY = "memory"
    SLOTS = "slots"
    HELD = "held"
    WAITING_FOR_BETTER_NODE = "waiting_for_better_node"


CODES = tuple(ReasonCode)
"""Codes by number, as in the ``blocked`` column; number 0 there means the node can take the demand."""

NUMBER = {code: number for number, code in enumerate(CODES)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One thing that keeps a demand waiting: ``message`` for people, ``fix`` the nearest way out.

    ``nodes`` counts the nodes it excludes. ``permanent`` means no finishing work can help: something must be changed.
    """

    code: ReasonCode
    message: str
    fix: str
    nodes: int
    permanent: bool

    def to_json(self) -> dict[str, object]:
        return {
            "code": self.code.value,
            "message": self.message,
            "fix": self.fix,
            "nodes": self.nodes,
            "permanent": self.permanent,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A node that fits. ``cost_seconds`` is the sum of ``terms``, each in seconds."""

    node: str
    cost_seconds: float
    terms: Mapping[str, float]

    def to_json(self) -> dict[str, object]:
        return {"node": self.node, "cost_seconds": self.cost_seconds, "terms": dict(self.terms)}

    def text(self) -> str:
        """``to_json`` as JSON text, by hand: an encoder costs several times as much for so small a value."""
        terms = ",".join([f'"{name}":{seconds!r}' for name, seconds in self.terms.items()])
        return f'{{"node":{quoted(self.node)},"cost_seconds":{self.cost_seconds!r},"terms":{{{terms}}}}}'


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """``candidates`` nodes were looked at; ``filtered`` counts those excluded, each under its first failing filter,
    so ``candidates - sum(filtered)`` nodes fit, and ``top`` holds the best three of them, the chosen one first.
    ``busy`` holds up to three of those without room that would cost less but for the wait, which is in their terms.
    ``notes`` are for people.

    Identical demands reserved together on one node share an explanation: it describes the first of them.
    """

    candidates: int
    filtered: Mapping[ReasonCode, int]
    top: tuple[Candidate, ...]
    busy: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        shown: dict[str, object] = {
            "candidates": self.candidates,
            "filtered": {code.value: count for code, count in self.filtered.items()},
            "top": [candidate.to_json() for candidate in self.top],
        }
        if self.busy:
            shown["busy"] = [candidate.to_json() for candidate in self.busy]
        if self.notes:
            shown["notes"] = list(self.notes)
        return shown

    @cached_property
    def text(self) -> str:
        """``to_json`` as JSON text, made once: a batch that shares an explanation pays for one."""
        filtered = ",".join([f'"{code.value}":{count}' for code, count in self.filtered.items()])
        top = ",".join([candidate.text() for candidate in self.top])
        more = f',"busy":[{",".join([candidate.text() for candidate in self.busy])}]' if self.busy else ""
        more += f',"notes":[{",".join([quoted(note) for note in self.notes])}]' if self.notes else ""
        return f'{{"candidates":{self.candidates},"filtered":{{{filtered}}},"top":[{top}]{more}}}'
