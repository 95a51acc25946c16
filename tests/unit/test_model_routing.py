"""Which replica gets a call: load, the prompt's beginning, failures, bounds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane.inference.gateway.prefixes import BLOCK_BYTES, BLOCKS_MOST, PrefixIndex, chain
from controlplane.inference.gateway.routing import AFFINITY_BOUND, AllBusy, NoReplica, Router
from controlplane.inference.values import Replica


def replica(name: str, **changes: Any) -> Replica:
    given: dict[str, Any] = {"deployment": "small", "kind": "llamacpp", "served_name": "m", "ready": True, "slots": 2}
    return Replica(id=name, tenant="default", **(given | changes))


TWO = [replica("a", slots=8), replica("b", slots=8)]
PROMPT = chain("default", "small", b"x" * (BLOCK_BYTES * 4))
OTHER = chain("default", "small", b"y" * (BLOCK_BYTES * 4))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_least_busy_is_chosen_and_equals_take_turns() -> None:
    router = Router()
    tickets = [router.choose(TWO, ()) for _ in range(4)]
    assert [one.replica.id for one in tickets] == ["a", "b", "a", "b"]
    tickets[1].release()
    tickets[3].release()
    assert router.choose(TWO, ()).replica.id == "b"


def test_a_call_counts_from_its_choice_to_its_release_and_no_longer() -> None:
    router = Router()
    ticket = router.choose(TWO, ())
    assert router.outstanding("a") == 1
    ticket.release()
    ticket.release()
    assert router.outstanding("a") == 0


def test_the_same_beginning_goes_to_its_holder() -> None:
    router = Router()
    router.choose(TWO, PROMPT).release()
    longer = chain("default", "small", b"x" * (BLOCK_BYTES * 4) + b"z" * BLOCK_BYTES)
    assert [router.choose(TWO, longer).replica.id for _ in range(2)] == ["a", "a"]


def test_the_holder_is_left_when_it_is_busier_by_the_bound() -> None:
    router = Router()
    chosen = [router.choose(TWO, PROMPT).replica.id for _ in range(AFFINITY_BOUND + 2)]
    assert chosen == ["a"] * (AFFINITY_BOUND + 1) + ["b"]


def test_among_holders_the_longest_beginning_wins() -> None:
    router = Router()
    router.prefixes.sent(PROMPT[:1], "a")
    router.prefixes.sent(PROMPT[:3], "b")
    assert router.choose(TWO, PROMPT).replica.id == "b"


def test_tenants_and_models_share_no_beginnings() -> None:
    text = b"x" * BLOCK_BYTES
    assert len({chain("a", "m", text), chain("b", "m", text), chain("a", "n", text)}) == 3


def test_a_short_prompt_has_no_beginning_and_a_long_one_is_bounded() -> None:
    assert chain("default", "small", b"short") == ()
    assert len(chain("default", "small", b"x" * 10_000_000)) == BLOCKS_MOST


def test_the_index_is_bounded_and_forgets_what_was_used_longest_ago() -> None:
    index = PrefixIndex(entries_most=4)
    index.sent(PROMPT, "a")
    index.sent(OTHER[:2], "b")
    assert len(index) == 4
    assert index.matched(OTHER, ["b"]) == {"b": 2}
    assert index.matched(PROMPT, ["a"]) == {}


def test_what_is_not_ready_or_was_tried_is_not_chosen() -> None:
    router = Router()
    down = replica("a", ready=False)
    assert router.choose([down, TWO[1]], PROMPT).replica.id == "b"
    with pytest.raises(NoReplica):
        router.choose([down, TWO[1]], (), tried=["b"])
    with pytest.raises(NoReplica):
        router.choose([], ())


def test_a_full_replica_takes_no_more() -> None:
    router = Router()
    only = [replica("a", slots=1)]
    tickets = [router.choose(only, ()) for _ in range(2)]
    with pytest.raises(AllBusy):
        router.choose(only, ())
    tickets[0].release()
    assert router.choose(only, ()).replica.id == "a"


def test_a_failed_one_is_left_alone_longer_each_time_and_its_cache_is_lost() -> None:
    clock = Clock()
    router = Router(clock)
    router.choose(TWO, PROMPT).release()
    router.failed("a")
    assert router.choose(TWO, PROMPT).replica.id == "b"
    clock.now = 0.6
    assert router.choose([TWO[0]], ()).replica.id == "a"
    router.failed("a")
    clock.now = 1.2
    assert {router.choose(TWO, ()).replica.id for _ in range(3)} == {"b"}
    clock.now = 2.0
    assert router.choose(TWO, OTHER).replica.id == "a"


def test_when_all_failed_one_is_tried_all_the_same() -> None:
    router = Router(Clock())
    router.failed("a")
    assert router.choose([TWO[0]], ()).replica.id == "a"


def test_an_answer_ends_the_penalty() -> None:
    router = Router(Clock())
    router.failed("a")
    router.answered("a")
    assert router.choose(TWO, ()).replica.id == "a"


@pytest.mark.anyio
async def test_who_waits_is_woken_one_by_one_in_order() -> None:
    router = Router()
    only = [replica("a", slots=1)]
    tickets = [router.choose(only, ()) for _ in range(2)]
    woken: list[int] = []

    async def waiter(number: int) -> None:
        await router.wait()
        woken.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(waiter(number))
        await asyncio.sleep(0)
        for ticket in tickets:
            ticket.release()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert woken == [0, 1]
        router.choose(only, ()).release()


@pytest.mark.anyio
async def test_who_stops_waiting_passes_its_turn_on() -> None:
    router = Router()
    ticket = router.choose([replica("a", slots=1)], ())
    first, second = (asyncio.ensure_future(router.wait()) for _ in range(2))
    await asyncio.sleep(0)
    ticket.release()
    first.cancel()
    async with asyncio.timeout(5):
        await second
    assert first.cancelled()
