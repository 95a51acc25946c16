"""Which spares are kept, and that none is given twice, lost or made after the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from sandboxes.container.pool import Pool
from sandboxes.errors import DriverFailed

pytestmark = pytest.mark.anyio


@dataclass(eq=False)
class Spare:
    key: str
    alive: bool = True

    def is_alive(self) -> bool:
        return self.alive


@dataclass
class Workshop:
    """Makes at once, unless told to wait or to fail."""

    made: list[Spare] = field(default_factory=list)
    dropped: list[Spare] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False

    async def make(self, key: str) -> Spare:
        await self.go.wait()
        if self.fails:
            raise DriverFailed("no")
        self.made.append(Spare(key))
        return self.made[-1]

    async def drop(self, spare: Spare) -> None:
        self.dropped.append(spare)


def opened(size: int) -> tuple[Workshop, Pool[str, Spare]]:
    shop = Workshop()
    shop.go.set()
    return shop, Pool[str, Spare](size, shop.make, shop.drop)


async def test_the_first_is_cold_and_the_next_are_given_once_each() -> None:
    shop, pool = opened(2)
    assert pool.take("a") is None
    await pool.settled()
    first, second = pool.take("a"), pool.take("a")
    assert first is not None and second is not None and first is not second
    assert pool.take("a") is None
    await pool.close()
    assert first not in shop.dropped and second not in shop.dropped
    assert set(map(id, shop.made)) == {id(first), id(second), *map(id, shop.dropped)}


async def test_recent_keys_share_the_places() -> None:
    shop, pool = opened(2)
    for keys, have in (("a", "aa"), ("ab", "ab"), ("abc", "bc"), ("cb", "bc")):
        for key in keys:
            pool.want(key)
        await pool.settled()
        assert sorted(spare.key for spare in pool.spares()) == sorted(have)
    await pool.close()
    assert len(shop.dropped) == len(shop.made)


async def test_a_dead_spare_is_not_given_and_is_replaced() -> None:
    shop, pool = opened(1)
    pool.want("a")
    await pool.settled()
    shop.made[0].alive = False
    assert pool.take("a") is None
    await pool.settled()
    assert shop.dropped == shop.made[:1] and pool.take("a") is shop.made[1]
    await pool.close()


async def test_one_that_cannot_be_made_is_not_tried_for_ever() -> None:
    shop, pool = opened(2)
    shop.fails = True
    pool.want("a")
    await pool.settled()
    assert pool.spares() == () and pool.take("a") is None
    shop.fails = False
    await pool.settled()
    assert [spare.key for spare in pool.spares()] == ["a", "a"]
    await pool.close()


async def test_the_end_waits_for_the_spare_being_made_and_drops_it() -> None:
    shop, pool = opened(3)
    shop.go.clear()
    pool.want("a")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pool.close())
        await asyncio.sleep(0)
        shop.go.set()
    assert len(shop.made) == 1 and shop.dropped == shop.made
    pool.want("a")
    assert pool.take("a") is None and len(shop.made) == 1


async def test_a_pool_of_none_makes_none() -> None:
    shop, pool = opened(0)
    assert pool.take("a") is None
    await pool.settled()
    await pool.close()
    assert shop.made == []
