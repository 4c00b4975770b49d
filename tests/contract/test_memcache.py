"""The Memcached backend keeps the contracts on two real servers, and what is its alone."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from zlib import crc32

import pytest

from asyncqueue.backends.base import GroupClaim, Member, Progress
from asyncqueue.backends.memcache import MemcacheBackend
from asyncqueue.connections.memcache import CONNECTIONS, FOREVER, Key
from asyncqueue.connections.memcache_groups import LOCKED_FOR
from asyncqueue.errors import BadMessage, ConfigError, EntryTooLarge, Refused, Unavailable
from asyncqueue.state import State
from asyncqueue.testing import BackendContract, GroupContract, ManualClock
from asyncqueue.testing.group_contract import LONG, group
from asyncqueue.testing.suite import BackendSuite, state
from tests.conftest import StartServer
from tests.services import MemcachedServer, free_port, memcached
from tests.wire import goldens

PATIENCE = 30.0


class OnTwoServers:
    """Two empty servers, and two places where nobody answers."""

    driver = "memcache"
    entry_limit: int | None
    expiry = 50.0  # nobody waits for it: see ``advance``

    @pytest.fixture
    def service(self, memcache_url: str) -> None:
        self.url = memcache_url
        self.entry_limit = memcached.item_size_max(memcache_url)

    async def make_backend(self, results_expire_in: float = 3600.0) -> MemcacheBackend:
        return MemcacheBackend(self.url, results_expire_in=results_expire_in)

    async def make_unreachable(self) -> MemcacheBackend:
        return MemcacheBackend(f"memcache://127.0.0.1:{free_port()},127.0.0.1:{free_port()}")

    async def advance(self, seconds: float) -> None:
        """Short times really pass. Long ones do on the servers alone: they decide what has expired."""
        if seconds < self.expiry / 10:
            await asyncio.sleep(seconds)
        else:
            await asyncio.to_thread(memcached.age, self.url, seconds)


class TestMemcacheBackend(OnTwoServers, BackendContract):
    pass


class TestMemcacheGroups(OnTwoServers, GroupContract):
    pass


class TestOfItsOwn(OnTwoServers, BackendSuite):
    """What only Memcached does."""

    backend: MemcacheBackend

    # entries

    @pytest.mark.parametrize("path", goldens.memcache_scenarios(), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
    async def test_what_machinery_wrote_is_read_and_ours_is_the_same(self, path: Path) -> None:
        items = json.loads(path.read_text())["items"]
        for name, item in items.items():
            set_raw(self.url, name, item["value"])
        for name, item in items.items():
            if name.startswith("group_"):
                (group,) = await self.backend.get_groups([name])
                assert group is not None
                await self.backend.forget([name])
                await self.backend.open_groups([group])
            else:
                (found,) = await self.backend.get([name])
                assert found is not None
                await self.backend.begin([found])
            assert value_of(self.url, name) == item["value"]
            assert facts_of(self.url, name)["f"] == item["flags"] == 0
            assert 3600 <= facts_of(self.url, name)["t"] <= 3603

    async def test_what_became_of_a_group_that_was_sent_is_as_machinery_says_it(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b")])
        before = value_of(self.url, "group_a")
        await self.backend.finish_members([Member("group_a", "task_a"), Member("group_a", "task_b")])
        assert await self.backend.claim_group("group_a", "me", LONG) is GroupClaim.MINE
        noted = value_of(self.url, "group_a")
        assert noted.startswith(before.replace('Triggered":false', 'Triggered":true').removesuffix("}"))
        assert noted.endswith(' me"}')
        await self.backend.mark_group_sent("group_a")
        assert value_of(self.url, "group_a") == before.replace('Triggered":false', 'Triggered":true')

    @pytest.mark.parametrize("keep", [60.0, 40 * 86_400.0])
    async def test_entries_end_at_a_moment_however_far_it_is(self, keep: float) -> None:
        self.backend.results_expire_in = keep
        await self.backend.put([state("task_a", State.STARTED)])
        await self.backend.put([state("task_a", State.SUCCESS)])
        await self.backend.open_groups([group("group_a", "task_a", "task_b")])
        await self.backend.finish_members([Member("group_a", "task_a")])
        assert await self.backend.add_members("group_a", ["task_c"])
        for name in ("task_a", "group_a"):
            assert keep <= facts_of(self.url, name)["t"] <= keep + 10
        assert keep - 5 <= facts_of(self.url, "group_a:aq:task_a", beside="group_a")["t"] <= keep + 10

    async def test_the_server_drops_what_is_at_its_end(self) -> None:
        short = await self.another_backend(0.4)
        await short.put([state("task_a", State.SUCCESS)])
        await self.backend.put([state("task_b", State.SUCCESS)])
        assert await self.in_time(endings(self.backend, "task_a")) == {"task_a": State.SUCCESS}
        await self.until_states(["task_a", "task_b"], [None, State.SUCCESS])

    async def test_what_is_to_be_kept_beyond_the_servers_time_is_kept_for_ever(self) -> None:
        self.backend.results_expire_in = 100 * 365 * 86_400.0
        await self.backend.put([state("task_a", State.STARTED)])
        assert facts_of(self.url, "task_a")["t"] == FOREVER
        self.backend.results_expire_in = 60.0
        await self.backend.put([state("task_a", State.SUCCESS)])
        await self.backend.touch([["task_unknown", "task_a"]])
        assert facts_of(self.url, "task_a")["t"] == FOREVER

    @pytest.mark.parametrize("keep", [7_200.0, 40 * 86_400.0, 100 * 365 * 86_400.0])
    async def test_touch_shortens_nothing_that_is_written_while_it_is_under_way(self, keep: float) -> None:
        short, longer = await self.another_backend(20.0), await self.another_backend(keep)
        await short.put([state("task_a", State.STARTED)])
        prolong, written = self.backend._link.prolong, list[int]()

        async def prolong_late(ends: Mapping[Key, int]) -> object:
            if not written:
                await longer.put([state("task_a", State.SUCCESS)])
                written.append(facts_of(self.url, "task_a")["t"])
            return await prolong(ends)

        self.backend._link.prolong = prolong_late  # type: ignore[method-assign,assignment]  # what comes in between
        await self.backend.touch([["task_unknown", "task_a"]])
        (left,) = written
        assert left == FOREVER or left > self.backend.results_expire_in + 60
        after = facts_of(self.url, "task_a")["t"]
        assert after == left if left == FOREVER else left - 5 <= after <= left + 60  # a busy machine takes its time

    async def test_who_was_counted_is_kept_with_a_group_that_is_touched(self) -> None:
        short = await self.another_backend(20.0)
        await short.open_groups([group("group_a", "task_a", "task_b")])
        await short.finish_members([Member("group_a", "task_a")])
        assert await self.backend.add_members("group_a", ["task_c"])
        for name in ("group_a", "group_a:aq:task_a"):
            assert facts_of(self.url, name, beside="group_a")["t"] <= 23
        await self.backend.touch([["group_a"]])
        assert facts_of(self.url, "group_a")["t"] >= 3600
        assert facts_of(self.url, "group_a:aq:task_a", beside="group_a")["t"] >= 3590

    async def test_what_nobody_can_read_is_no_state_and_is_written_over(self) -> None:
        set_raw(self.url, "task_a", "{oops")
        with pytest.raises(BadMessage):
            await self.backend.get(["task_a"])
        await self.backend.put([state("task_a", State.SUCCESS)])
        assert await self.states("task_a") == [State.SUCCESS]

    async def test_what_nobody_can_read_is_no_obstacle_to_touch_and_is_forgotten(self) -> None:
        set_raw(self.url, "group_a", '{"GroupUUID":"oops')
        set_raw(self.url, "plan_a", '{"AqIds":[oops')
        short = await self.another_backend(20.0)
        await short.put([state("task_a", State.STARTED)])
        family = ["task_a", "group_a", "plan_a"]
        await self.backend.touch([family])
        assert all(facts_of(self.url, name)["t"] >= 3600 for name in family)
        await self.backend.forget(family)
        assert list(await self.backend.get(family)) == [None, None, None]

    async def test_a_state_that_lacks_fields_is_read(self) -> None:
        set_raw(self.url, "task_a", '{"TaskUUID":"task_a","State":"STARTED"}')
        assert await self.states("task_a") == [State.STARTED]
        await self.backend.put([state("task_a", State.SUCCESS)])
        assert await self.states("task_a") == [State.SUCCESS]

    @pytest.mark.parametrize("name", ["", "a b", "a\r\nflush_all", "a\tb", "x" * 251, "\x7f"])
    async def test_what_can_be_no_key_is_refused(self, name: str) -> None:
        await self.backend.put([state("task_a", State.SUCCESS)])
        for verb in (
            self.backend.get([name]),
            self.backend.put([state(name)]),
            self.backend.begin([state(name)]),
            self.backend.forget([name]),
            self.backend.claim_group(name, "me", LONG),
        ):
            with pytest.raises(Refused, match="can be no key of Memcached: expected 1 to 250 bytes without spaces"):
                await verb
        assert await self.states("task_a") == [State.SUCCESS]

    async def test_uuids_may_be_as_long_as_they_may_be(self) -> None:
        group_id, *tasks = [f"{letter}{'x' * 199}" for letter in "gab"]
        await self.backend.open_groups([group(group_id, *tasks)])
        answers = [await self.backend.finish_members([Member(group_id, task)]) for task in tasks]
        assert answers == [[Progress.WAITING], [Progress.COMPLETE]]

    async def test_of_states_that_race_the_final_one_stays(self) -> None:
        backends = [self.backend, *[await self.another_backend() for _ in range(3)]]
        await self.backend.begin([state("task_a", name="add")])
        news = [State.RECEIVED, State.STARTED, State.RETRY] * 10
        news[15] = State.SUCCESS
        await asyncio.gather(*(backends[n % 4].put([state("task_a", new)]) for n, new in enumerate(news)))
        (found,) = await self.backend.get(["task_a"])
        assert found is not None
        assert (found.state, found.task_name) == (State.SUCCESS, "add")

    # groups

    async def test_a_group_that_was_evicted_is_lost(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a", "task_b")])
        assert await self.backend.finish_members([Member("group_a", "task_a")]) == [Progress.WAITING]
        raw(self.url, "group_a", "delete group_a")
        assert await self.backend.finish_members([Member("group_a", "task_b")]) == [Progress.LOST]

    async def test_a_task_is_no_group(self) -> None:
        await self.backend.put([state("task_a", State.SUCCESS)])
        assert list(await self.backend.get_groups(["task_a"])) == [None]
        for verb in (
            self.backend.finish_members([Member("task_a", "task_b")]),
            self.backend.add_members("task_a", ["task_b"]),
            self.backend.claim_group("task_a", "me", LONG),
            self.backend.mark_group_sent("task_a"),
        ):
            with pytest.raises(Refused, match="task_a: what is there is no group"):
                await verb

    async def test_while_machinery_triggers_a_group_nobody_else_does(self) -> None:
        clock = ManualClock(time.time())
        mine = await self.opened(MemcacheBackend(self.url, clock=clock))
        for name in ("group_a", "group_b"):
            await mine.open_groups([group(name, "task_a")])
            set_raw(self.url, name, value_of(self.url, name).replace('"Lock":false', '"Lock":true'))
            assert await mine.finish_members([Member(name, "task_a")]) == [Progress.COMPLETE]
            assert await mine.claim_group(name, "me", LONG) is GroupClaim.BUSY
            assert not await mine.add_members(name, ["task_b"])
        locked = value_of(self.url, "group_a")
        set_raw(self.url, "group_a", locked.replace('"ChordTriggered":false', '"ChordTriggered":true'))
        assert await mine.claim_group("group_a", "me", LONG) is GroupClaim.SENT
        assert await mine.finish_members([Member("group_a", "task_a")]) == [Progress.TRIGGERED]
        clock.advance(LOCKED_FOR - 0.1)
        assert await mine.claim_group("group_b", "me", LONG) is GroupClaim.BUSY
        clock.advance(0.2)  # the worker that has the lock is no more
        assert await mine.claim_group("group_b", "me", LONG) is GroupClaim.MINE
        assert '"ChordTriggered":true,"Lock":false' in value_of(self.url, "group_b")

    async def test_nobody_is_added_once_a_group_was_told_complete(self) -> None:
        backends = [self.backend, *[await self.another_backend() for _ in range(3)]]
        added_at_all = refused_at_all = 0
        for number in range(40):
            group_id = f"group_{number}"
            tasks = [f"task_{number}_{each}" for each in "ab"]
            await self.backend.open_groups([group(group_id, *tasks)])
            await backends[0].finish_members([Member(group_id, tasks[0])])

            async def finish(group_id: str = group_id, task: str = tasks[1], number: int = number) -> Progress:
                for _ in range(number % 8):  # at another moment of the addition in every round
                    await backends[1].get(["task_unknown"])
                (progress,) = await backends[1].finish_members([Member(group_id, task)])
                return progress

            finished, added = await asyncio.gather(finish(), backends[2].add_members(group_id, ["task_late"]))
            assert finished is (Progress.WAITING if added else Progress.COMPLETE)
            added_at_all += added
            refused_at_all += not added
        print(f"{added_at_all} were added in time, {refused_at_all} were not")
        assert added_at_all

    async def test_who_ended_before_being_a_member_is_waited_for_again(self) -> None:
        await self.backend.open_groups([group("group_a", "task_a")])
        assert await self.backend.finish_members([Member("group_a", "task_late")]) == [Progress.WAITING]
        assert await self.backend.add_members("group_a", ["task_late"])
        assert await self.backend.finish_members([Member("group_a", "task_a")]) == [Progress.WAITING]
        assert await self.backend.finish_members([Member("group_a", "task_late")]) == [Progress.COMPLETE]

    async def test_counting_a_member_costs_the_same_in_a_group_of_any_size(self) -> None:
        moved = {}
        for size in (10, 2_000):
            tasks = [f"task_{size}_{number}" for number in range(size)]
            await self.backend.open_groups([group(f"group_{size}", *tasks)])
            await self.backend.finish_members([Member(f"group_{size}", tasks[0])])
            before = bytes_moved(self.url)
            for task in tasks[1:6]:
                assert await self.backend.finish_members([Member(f"group_{size}", task)]) == [Progress.WAITING]
            moved[size] = bytes_moved(self.url) - before
        print(f"five members: {moved} bytes, those of asking included")
        assert moved[2_000] < moved[10] + 500

    # several servers

    async def test_a_key_is_on_the_server_where_machinery_looks_for_it(self) -> None:
        known = {"task_00000000-0000-4000-8000-000000000001": 0x9834145C, "group_a": 0x8173C9E8, "task_b": 0x26B4DAD5}
        for name, checksum in known.items():
            await self.backend.put([state(name, State.SUCCESS)])
            places = self.url.partition("://")[2].split(",")
            assert "TaskUUID" in memcached.call(places[checksum % 2], f"get {name}", ends_with="END\r\n")
            assert "TaskUUID" not in memcached.call(places[1 - checksum % 2], f"get {name}", ends_with="END\r\n")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memcache://", "the name of a server is missing"),
        ("memcache://h1:11211,", "the name of a server is missing"),
        ("memcache://h1", "'h1' is no host with a port"),
        ("memcache://h1,11211", "'h1' is no host with a port"),
        ("memcache://h1:0", "'h1:0' has no port between 1 and 65535"),
        ("memcache://h1:70000", "'h1:70000' has no port between 1 and 65535"),
        ("memcache://user:secret@h1:11211", "Memcached takes no login"),
        ("memcache://h1:11211?timeout=1", "it takes no options"),
        ("memcache://h1:11211/0", "'h1:11211/0' is no host with a port"),
        ("memcache:h1:11211", "is no memcache:// URL"),
    ],
)
def test_a_url_that_cannot_work_is_refused_in_words(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as raised:
        MemcacheBackend(url)
    assert "expected memcache://host:port[,host:port…]" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_the_servers_of_a_url_keep_their_order() -> None:
    backend = MemcacheBackend("memcache://h2:1,h1:11211,[::1]:2,/run/memcached.sock")
    assert backend.address == "h2:1,h1:11211,[::1]:2,/run/memcached.sock"


class Pair:
    """Two servers of a test's own, a backend on both, and a task on each."""

    def __init__(self, start_server: StartServer) -> None:
        self.servers = [start_server(MemcachedServer()) for _ in range(2)]
        self.url = f"memcache://{','.join(server.place for server in self.servers)}"
        ids = [f"task_{number}" for number in range(20)]
        self.first, self.second = (next(each for each in ids if crc32(each.encode()) % 2 == at) for at in (0, 1))


@pytest.fixture
def pair(start_server: StartServer) -> Pair:
    return Pair(start_server)


@asynccontextmanager
async def opened(backend: MemcacheBackend) -> AsyncIterator[MemcacheBackend]:
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


async def test_where_one_server_is_away_the_others_are_of_use(pair: Pair) -> None:
    async with opened(MemcacheBackend(pair.url)) as backend:
        await backend.begin([state(pair.first), state(pair.second)])
        waiting = asyncio.create_task(endings(backend, pair.first))
        stranded = asyncio.create_task(endings(backend, pair.second))
        await backend.get([pair.first])
        pair.servers[1].kill()
        with pytest.raises(Unavailable, match=f"Memcached at {pair.servers[1].place}"):
            await asyncio.wait_for(stranded, PATIENCE)
        for verb in (backend.get, backend.forget):
            with pytest.raises(Unavailable):
                await verb([pair.second])
        with pytest.raises(Unavailable):
            await backend.put([state(pair.second, State.SUCCESS), state(pair.first, State.SUCCESS)])
        assert [one.state for one in await backend.get([pair.first]) if one] == [State.SUCCESS]
        assert await asyncio.wait_for(waiting, PATIENCE) == {pair.first: State.SUCCESS}
        async with opened(MemcacheBackend(pair.url)) as fresh:
            assert [one.state for one in await fresh.get([pair.first]) if one] == [State.SUCCESS]
            pair.servers[1].restart()
            for each in (backend, fresh):
                await each.put([state(pair.second, State.SUCCESS)])
                assert await asyncio.wait_for(endings(each, pair.second), PATIENCE) == {pair.second: State.SUCCESS}


async def test_a_server_that_stands_still_is_unavailable_and_no_late_reply_is_taken_for_anothers(pair: Pair) -> None:
    async with opened(MemcacheBackend(pair.url, timeout=0.2)) as backend:
        ids = [f"task_{number}" for number in range(50)]
        await backend.begin([state(task_id, name=task_id) for task_id in ids])
        for server in pair.servers:
            server.suspend()
        with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
            await backend.get(ids)
        for server in pair.servers:
            server.resume()
        for task_id in ids:
            (found,) = await backend.get([task_id])
            assert found is not None
            assert found.task_name == task_id


async def test_a_call_that_is_cancelled_leaves_no_reply_behind(pair: Pair) -> None:
    async with opened(MemcacheBackend(pair.url)) as backend:
        ids = [f"task_{number}" for number in range(50)]
        await backend.begin([state(task_id, name=task_id) for task_id in ids])
        for turns in range(40):
            call = asyncio.create_task(backend.get(ids) if turns % 2 else backend.put([state(ids[0], State.STARTED)]))
            for _ in range(turns // 4):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait({call})
            found = await backend.get(ids)
            assert [each.task_name for each in found if each] == ids


async def test_who_waits_for_a_connection_gets_one_where_those_who_had_them_were_cancelled(pair: Pair) -> None:
    async with opened(MemcacheBackend(pair.url, timeout=PATIENCE)) as backend:
        await backend.begin([state(pair.first)])
        pair.servers[0].suspend()
        calls = [asyncio.create_task(backend.get([pair.first])) for _ in range(CONNECTIONS)]
        waiting = asyncio.create_task(backend.get([pair.first]))
        await asyncio.sleep(0.1)  # they have the connections
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        pair.servers[0].resume()
        (found,) = await asyncio.wait_for(waiting, PATIENCE / 2)
        assert found is not None


async def test_an_opening_that_is_cancelled_leaves_nothing_behind(pair: Pair) -> None:
    backend = MemcacheBackend(pair.url)
    for turns in range(30):
        opening = asyncio.create_task(backend.open())
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait({opening})
    async with opened(backend):
        await backend.put([state(pair.first, State.SUCCESS), state(pair.second, State.SUCCESS)])
        assert await endings(backend, pair.first, pair.second) == dict.fromkeys(
            (pair.first, pair.second), State.SUCCESS
        )


async def test_a_server_that_goes_away_between_command_and_reply_is_unavailable(pair: Pair) -> None:
    async with opened(MemcacheBackend(pair.url)) as backend:
        await backend.begin([state(pair.first)])
        pair.servers[0].suspend()
        call = asyncio.create_task(backend.put([state(pair.first, State.SUCCESS)]))
        await asyncio.sleep(0.05)  # it has sent its command
        pair.servers[0].kill()
        with pytest.raises(Unavailable, match=pair.servers[0].place):
            await asyncio.wait_for(call, PATIENCE)


async def test_an_entry_over_the_usual_limit_is_named_with_the_servers_own(pair: Pair) -> None:
    big = "x" * 1024 * 1024
    async with opened(MemcacheBackend(pair.url)) as backend:
        says = f"state {pair.first}: an entry of 1048.* bytes, over the limit of 1048576 bytes of Memcached at"
        with pytest.raises(EntryTooLarge, match=says):
            await backend.put([state(pair.first, State.FAILURE, error=big)])
        room = 1024 * 1024 - 200 - len(pair.first)
        await backend.put([state(pair.first, State.FAILURE, error="x" * room)])
        (found,) = await backend.get([pair.first])
        assert found is not None
        assert len(found.error) == room


async def test_a_limit_that_was_lowered_meanwhile_is_named_too(start_server: StartServer) -> None:
    server = start_server(MemcachedServer(item_size_max=2 * 1024 * 1024))
    async with opened(MemcacheBackend(server.url)) as backend:
        server.item_size_max = 1024 * 1024
        await asyncio.to_thread(server.restart)
        with pytest.raises(EntryTooLarge, match=r"task_a, an entry of .*object too large for cache"):
            await backend.put([state("task_a", State.FAILURE, error="x" * 1_500_000)])
        await backend.put([state("task_a", State.FAILURE, error="the result could not be stored")])
        assert await endings(backend, "task_a") == {"task_a": State.FAILURE}


async def test_a_group_that_has_grown_to_the_limit_can_be_completed_and_claimed(start_server: StartServer) -> None:
    server = start_server(MemcachedServer(item_size_max=512 * 1024))
    members = [f"{number:_>200}" for number in range(2_577)] + ["_" * 100]
    async with opened(MemcacheBackend(server.url)) as backend:
        await backend.open_groups([group("group_a", *members)])
        fillers = [f"{number:+>200}" for number in range(10)]
        with pytest.raises(EntryTooLarge, match=r"group group_a: an entry of .* over the limit of 524288 bytes"):
            await each_added(backend, fillers)
        (grown,) = await backend.get_groups(["group_a"])
        assert grown is not None
        members = list(grown.task_uuids or ())
        assert fillers[0] in members
        progress = await backend.finish_members([Member("group_a", task) for task in members])
        assert set(progress) == {Progress.COMPLETE}
        assert await backend.claim_group("group_a", "x" * 64, LONG) is GroupClaim.MINE


async def test_a_unix_socket_is_a_server_too(start_server: StartServer) -> None:
    server = start_server(MemcachedServer(on_socket=True))
    async with opened(MemcacheBackend(server.url)) as backend:
        await asyncio.gather(*(backend.put([state(f"task_{number}", State.SUCCESS)]) for number in range(50)))
        assert await endings(backend, "task_0", "task_49") == dict.fromkeys(("task_0", "task_49"), State.SUCCESS)


@pytest.mark.parametrize(
    ("greeting", "says"),
    [
        (b"VERSION 1.5.22\r\n", r"is version 1\.5\.22; 1\.6\.10 or newer is needed"),
        (b"CLIENT_ERROR unauthenticated\r\n", "CLIENT_ERROR unauthenticated"),
        (b"-ERR unknown command 'version'\r\n", "unknown command"),
        (b"x" * 70_000, "limit"),
    ],
)
async def test_a_server_that_cannot_be_used_says_why(greeting: bytes, says: str) -> None:
    async with that_answers(greeting) as place:
        with pytest.raises(Refused, match=f"Memcached at {place}.*{says}"):
            await MemcacheBackend(f"memcache://{place}").open()


async def test_a_server_that_hangs_up_in_the_middle_is_unavailable() -> None:
    greetings = (b"VERSION 1.6.18\r\n", b"STAT item_size_max 1048576\r\nEND\r\n")
    async with that_answers(*greetings) as place, opened(MemcacheBackend(f"memcache://{place}")) as backend:
        with pytest.raises(Unavailable, match=f"Memcached at {place}: it closed the connection"):
            await asyncio.wait_for(backend.put([state("task_a", State.SUCCESS)]), PATIENCE)


async def test_of_many_replies_each_may_take_its_time() -> None:
    greetings = (b"VERSION 1.6.18\r\n", b"STAT item_size_max 1048576\r\nEND\r\n")
    async with (
        that_answers(*greetings, *[b"EN\r\n"] * 12, pause=0.1) as place,
        opened(MemcacheBackend(f"memcache://{place}", timeout=1.0)) as backend,
    ):
        began = time.monotonic()
        assert list(await backend.get([f"task_{number}" for number in range(12)])) == [None] * 12
        assert time.monotonic() - began > 1.0


@asynccontextmanager
async def that_answers(*replies: bytes, pause: float = 0.0) -> AsyncIterator[str]:
    """Where something answers the first lines of all its clients so, each after a pause (seconds), and hangs up at the
    one after them."""
    left = list(replies)
    connections: list[asyncio.Task[None] | None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        while await reader.readline() and left:
            await asyncio.sleep(pause)
            writer.write(left.pop(0))
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
        await asyncio.wait(filter(None, connections), timeout=PATIENCE)


async def each_added(backend: MemcacheBackend, task_ids: Sequence[str]) -> None:
    for task_id in task_ids:
        assert await backend.add_members("group_a", [task_id])


async def endings(backend: MemcacheBackend, *task_ids: str) -> dict[str, State | None]:
    return {task_id: None if found is None else found.state async for task_id, found in backend.watch(task_ids)}


def raw(url: str, beside: str, command: str, *, ends_with: str = "\r\n") -> str:
    """One command to the server that has this key."""
    places = url.partition("://")[2].split(",")
    return memcached.call(places[crc32(beside.encode()) % len(places)], command, ends_with=ends_with)


def set_raw(url: str, name: str, value: str) -> None:
    assert raw(url, name, f"set {name} 0 60 {len(value.encode())}\r\n{value}") == "STORED\r\n"


def value_of(url: str, name: str) -> str:
    return raw(url, name, f"get {name}", ends_with="END\r\n").partition("\r\n")[2].removesuffix("\r\nEND\r\n")


def facts_of(url: str, name: str, *, beside: str = "") -> dict[str, int]:
    """Flags (f) and seconds left (t) of an entry."""
    word, *facts = raw(url, beside or name, f"mg {name} f t").split()
    assert word == "HD", f"{name} is not there"
    return {fact[0]: int(fact[1:]) for fact in facts}


def bytes_moved(url: str) -> int:
    """How much all servers have read and written."""
    stats = [memcached.call(place, "stats", ends_with="END\r\n") for place in url.partition("://")[2].split(",")]
    return sum(int(each) for text in stats for each in re.findall(r"STAT bytes_(?:read|written) (\d+)", text))
