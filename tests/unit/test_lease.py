"""One writer at a time: who gets a lease, when its holder is taken for dead, and what its holder can ask for."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slime_ray import lease as leases
from slime_ray.errors import RunError
from slime_ray.lease import BeatWatch, Entry, Holder, Lease, LeaseReader, acquire, held_by, newest, read
from slime_ray.storage import place
from tests.faults.harness import wait_until

DEAD_AFTER_S = 0.4
ELSEWHERE = Holder(host="far", pid=7, machine="another boot", started="1")
HELD_HERE = (
    f"sft-1 is held by process {os.getpid()} on {socket.gethostname()}; wait for it with --wait, or stop that process"
)
HELD_ELSEWHERE = "sft-1 is held by process 7 on far; wait for it with --wait, or stop that process"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders die in less than half a second."""
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    monkeypatch.setattr(leases, "DEAD_AFTER_S", DEAD_AFTER_S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sft-1" / "lease"


def take(folder: Path, *, wait: bool = False, say: Callable[[str], None] = print) -> Lease:
    return acquire(folder, what="sft-1", wait=wait, say=say)


def refusal(folder: Path) -> str:
    """Why a lease cannot be taken now."""
    with pytest.raises(RunError) as error:
        take(folder)
    return str(error.value)


def put(folder: Path, entry: Entry, *, number: int = 1) -> Path:
    """Write a lease that another process, or none, keeps alive."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:06d}.json"
    new = folder / "new"
    new.write_text(entry.model_dump_json())
    return new.replace(path)


@contextmanager
def beating(folder: Path, entry: Entry) -> Iterator[None]:
    """Inside, someone elsewhere keeps a lease alive."""
    ended = threading.Event()
    put(folder, entry)

    def beat() -> None:
        number = entry.beat
        while not ended.wait(0.02):
            number += 1
            put(folder, entry.model_copy(update={"beat": number}))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start a call that may wait, and where its result will be."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    return thread, results


def test_numbers_rise_and_only_the_newest_is_kept(folder: Path) -> None:
    for number in (1, 2, 3):
        with take(folder) as lease:
            assert lease.number == number == newest(folder)
            assert [path.name for path in folder.iterdir()] == [f"00000{number}.json"]
            entry = read(folder, number)
            assert entry is not None
            assert (entry.holder, entry.released) == (Holder.here(), False)
        entry = read(folder, number)
        assert entry is not None
        assert entry.released


def test_of_many_threads_one_wins(folder: Path) -> None:
    start, outcomes = threading.Barrier(8), []

    def contend() -> None:
        start.wait()
        try:
            outcomes.append(take(folder))
        except RunError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert [lease.number for lease in won] == [1]
    assert [outcome for outcome in outcomes if outcome is not won[0]] == [HELD_HERE] * 7
    won[0].release()


def take_turns(folder: Path, turns: int) -> None:
    """Hold a lease again and again, noting its number where only one may be at a time."""
    for _ in range(turns):
        with take(folder, wait=True, say=lambda _: None) as lease:
            inside = folder.with_name("inside")
            inside.touch(exist_ok=False)
            with folder.with_name("numbers").open("a") as file:
                file.write(f"{lease.number}\n")
            time.sleep(0.002)
            inside.unlink()


def test_many_processes_hold_it_one_after_another(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=take_turns, args=(folder, 6)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert folder.with_name("numbers").read_text().split() == [str(number) for number in range(1, 25)]


def test_a_number_that_was_passed_and_removed_is_not_taken(folder: Path) -> None:
    put(folder, Entry(holder=ELSEWHERE), number=3)
    # As by someone who had looked when number 1 was the newest, and was slow.
    seen = Entry(holder=ELSEWHERE, released=True)
    assert leases._take(folder, 2, after=seen) is None
    assert [path.name for path in folder.iterdir()] == ["000003.json"]


def test_a_lease_that_was_let_go_is_taken_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "DEAD_AFTER_S", 1e9)
    for holder in (ELSEWHERE, Holder.here()):
        number = newest(folder) + 1
        put(folder, Entry(holder=holder, released=True), number=number)
        with take(folder) as lease:
            assert lease.number == number + 1


def test_a_living_holder_is_named(folder: Path) -> None:
    with take(folder):
        assert refusal(folder) == HELD_HERE


def test_what_to_do_about_a_living_holder_is_the_callers_word(folder: Path) -> None:
    with take(folder), pytest.raises(RunError, match=r"^sft-1 is held by process \d+ on .*; come back later$"):
        acquire(folder, what="sft-1", wait=False, say=print, hint="come back later")


def test_a_waiter_says_so_once_and_takes_over(folder: Path) -> None:
    said: list[str] = []
    first = take(folder)
    thread, taken = in_thread(lambda: take(folder, wait=True, say=said.append))
    wait_until(lambda: said)
    time.sleep(0.1)  # many looks
    assert not taken
    first.release()
    thread.join(10)
    assert said == [f"sft-1 is held by process {os.getpid()} on {socket.gethostname()}; waiting for it"]
    assert taken[0].number == 2
    taken[0].release()


def test_a_holder_elsewhere_is_dead_once_its_counter_stood_still(folder: Path) -> None:
    put(folder, Entry(holder=ELSEWHERE, beat=12))
    assert held_by(folder) == ELSEWHERE
    started = time.monotonic()
    with take(folder) as lease:
        assert time.monotonic() - started >= DEAD_AFTER_S
        assert lease.number == 2


def test_a_holder_elsewhere_lives_while_its_counter_moves(folder: Path) -> None:
    with beating(folder, Entry(holder=ELSEWHERE)):
        assert refusal(folder) == HELD_ELSEWHERE
        thread, taken = in_thread(lambda: take(folder, wait=True, say=lambda _: None))
        time.sleep(2 * DEAD_AFTER_S)
        assert not taken
        stopped = time.monotonic()
    thread.join(10)
    assert taken[0].number == 2
    assert time.monotonic() - stopped >= DEAD_AFTER_S / 2
    taken[0].release()


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_clock_that_jumps_changes_nothing(jump_s: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1e9]

    def jumping() -> float:
        now[0] += jump_s
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    with beating(folder, Entry(holder=ELSEWHERE)), pytest.raises(RunError, match="process 7 on far"):
        take(folder)
    thread, taken = in_thread(lambda: take(folder))
    thread.join(DEAD_AFTER_S / 2)
    assert not taken
    thread.join(10)
    assert taken[0].number == 2
    taken[0].release()


@pytest.mark.parametrize("content", [b"", b'{"holder":{"host":"far","pid":', b"[]"])
def test_a_lease_that_cannot_be_read_is_taken_once_nobody_mends_it(content: bytes, folder: Path) -> None:
    folder.mkdir(parents=True)
    path = folder / "000001.json"
    path.write_bytes(content)
    started = time.monotonic()
    with take(folder) as lease:
        assert lease.number == 2
        assert time.monotonic() - started >= DEAD_AFTER_S
    # Caught while it was written, it is another's.
    put(folder, Entry(holder=Holder.here()), number=3).write_bytes(content)
    thread, refused = in_thread(lambda: refusal(folder))
    thread.join(DEAD_AFTER_S / 3)
    put(folder, Entry(holder=Holder.here()), number=3)
    thread.join(10)
    assert refused == [HELD_HERE]


def test_a_process_with_a_dead_holders_number_is_not_the_holder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "DEAD_AFTER_S", 1e9)
    here = Holder.here()
    assert here.alive() is True
    reused = here.model_copy(update={"started": str(int(here.started) - 1)})
    assert reused.alive() is False
    put(folder, Entry(holder=reused))
    assert held_by(folder) is None
    with take(folder) as lease:
        assert lease.number == 2


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine."""
    with subprocess.Popen(["sleep", "60"]) as started:
        yield started
        started.kill()


def holder_of(process: subprocess.Popen[bytes]) -> Holder:
    started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    return Holder(host="here", pid=process.pid, machine=Holder.here().machine, started=started)


def test_a_holder_here_is_dead_once_its_process_is(folder: Path, process: subprocess.Popen[bytes]) -> None:
    holder = holder_of(process)
    put(folder, Entry(holder=holder))
    assert holder.alive() is True
    assert held_by(folder) == holder
    with pytest.raises(RunError, match=f"^sft-1 is held by process {process.pid} on here; "):
        take(folder)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and its number not yet free
    assert holder.alive() is False
    process.wait()
    assert holder.alive() is False
    assert held_by(folder) is None
    take(folder).release()


def test_where_a_process_cannot_be_seen_only_its_counter_tells() -> None:
    here = Holder.here()
    for machine in ("", "another boot", here.machine.split()[0]):
        assert here.model_copy(update={"machine": machine}).alive() is None


def test_a_watch_starts_anew_with_every_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(leases, "DEAD_AFTER_S", 60.0)
    monkeypatch.setattr(leases, "BEAT_S", 30.0)
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watch = BeatWatch()
    for after_s, beat, alive in [
        (0, 4, None),  # not yet seen to move
        (59, 4, None),
        (1, 5, True),
        (59, 6, True),
        (60, 6, None),
        (1, 6, False),
        (0, 7, True),  # cut off for a while
        (1000, 7, None),  # nobody looked meanwhile
        (1, None, None),  # cannot be read
        (59, None, None),
        (2, None, False),
    ]:
        now[0] += after_s
        assert watch.alive(None if beat is None else Entry(holder=ELSEWHERE, beat=beat)) is alive


def test_a_lease_is_kept_alive(folder: Path) -> None:
    def beat() -> int:
        entry = read(folder, 1)
        assert entry is not None
        return entry.beat

    with take(folder):
        wait_until(lambda: beat() >= 3)
    last = beat()
    time.sleep(0.1)
    assert beat() == last


def test_a_holder_that_lost_its_lease_notices_and_leaves_the_new_one_alone(folder: Path) -> None:
    lease = take(folder)
    new = put(folder, Entry(holder=ELSEWHERE, beat=5), number=2)
    written = new.read_bytes()
    wait_until(lambda: lease.wish == "lost")
    lease.ask("stop")
    assert lease.wish == "lost"
    lease.release()
    lease.forget()
    assert new.read_bytes() == written
    assert newest(folder) == 2


@pytest.mark.parametrize("let_go", [Lease.release, Lease.forget])
def test_a_holder_that_did_not_notice_yet_leaves_the_new_lease_alone(
    let_go: Callable[[Lease], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 60.0)
    lease = take(folder)
    new = put(folder, Entry(holder=ELSEWHERE, beat=5), number=2)
    written = new.read_bytes()
    lease.ask("stop")
    let_go(lease)
    assert new.read_bytes() == written
    assert held_by(folder) == ELSEWHERE


def test_a_reader_hears_what_is_asked_for(folder: Path) -> None:
    with take(folder) as lease:
        reader = LeaseReader(folder, lease.number, lease.token)
        assert (reader.wish, reader.wishes) == ("", 0)
        lease.ask("checkpoint")
        lease.ask("checkpoint")
        wait_until(lambda: (reader.wish, reader.wishes) == ("checkpoint", 2))
        lease.ask("stop")
        wait_until(lambda: (reader.wish, reader.wishes) == ("stop", 3))
        # What is asked for after it takes nothing of it back.
        lease.ask("checkpoint")
        assert (lease.wish, lease.wishes) == ("stop", 3)
        time.sleep(0.1)
        assert (reader.wish, reader.wishes) == ("stop", 3)
    wait_until(lambda: reader.wish == "lost")


def test_a_wish_survives_a_disk_that_is_full_for_a_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with take(folder) as lease:
        reader = LeaseReader(folder, lease.number, lease.token)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            lease.ask("stop")
            time.sleep(0.1)
            assert reader.wish == ""
        wait_until(lambda: reader.wish == "stop")


def test_a_reader_notices_that_its_holders_process_is_gone(folder: Path, process: subprocess.Popen[bytes]) -> None:
    put(folder, Entry(holder=holder_of(process)))
    reader = LeaseReader(folder, 1, "")
    time.sleep(0.1)
    assert reader.wish == ""
    process.kill()
    wait_until(lambda: reader.wish == "lost")


def test_a_reader_notices_that_the_lease_is_anothers(folder: Path) -> None:
    put(folder, Entry(holder=Holder.here()))
    reader = LeaseReader(folder, 1, "")
    time.sleep(0.1)
    assert reader.wish == ""
    put(folder, Entry(holder=Holder.here()), number=2)
    wait_until(lambda: reader.wish == "lost")


def test_a_reader_far_from_its_holder_goes_by_the_counter(folder: Path) -> None:
    with beating(folder, Entry(holder=ELSEWHERE)):
        reader = LeaseReader(folder, 1, "")
        time.sleep(2 * DEAD_AFTER_S)
        assert reader.wish == ""
        stopped = time.monotonic()
    wait_until(lambda: reader.wish == "lost")
    assert time.monotonic() - stopped >= DEAD_AFTER_S / 2


def test_a_lease_that_is_forgotten_leaves_no_trace(folder: Path) -> None:
    take(folder).forget()
    assert not folder.parent.exists()
    with take(folder) as lease:
        assert lease.number == 1
    lease = take(folder)
    (folder.parent / "metrics.jsonl").touch()
    lease.forget()
    lease.release()
    assert [path.name for path in folder.parent.iterdir()] == ["metrics.jsonl"]


def test_two_never_hold_a_lease_where_one_was_forgotten(folder: Path) -> None:
    take(folder).release()
    # Someone who looks now will try number 2, but is slow.
    seen = read(folder, 1)
    take(folder).forget()
    first = take(folder)
    second = leases._take(folder, 2, after=seen)
    first.release()
    if second is not None:
        second.release()
    assert second is None


def point(folder: Path, target: Path) -> None:
    """Have a folder be a link to something else, from one moment to the next: it is never absent."""
    link = folder.with_name("link")
    link.symlink_to(target)
    link.replace(folder)


def test_a_lease_outlives_a_disk_that_fails_for_a_moment(folder: Path) -> None:
    sound, failing = folder.with_name("sound"), folder.with_name("failing")
    sound.mkdir(parents=True)
    failing.touch()
    point(folder, sound)
    with take(folder) as lease:
        reader = LeaseReader(folder, lease.number, lease.token)
        point(folder, failing)
        time.sleep(0.1)
        point(folder, sound)
        lease.ask("stop")
        wait_until(lambda: reader.wish == "stop", timeout_s=10)
        entry = read(folder, 1)
        assert entry is not None
        wait_until(lambda: read(folder, 1) != entry, timeout_s=10)


def test_who_holds_a_run_is_told_by_one_look(folder: Path) -> None:
    assert held_by(folder) is None
    with take(folder):
        assert held_by(folder) == Holder.here()
    assert held_by(folder) is None
    put(folder, Entry(holder=ELSEWHERE), number=2)
    assert held_by(folder) == ELSEWHERE


def test_a_lease_behind_a_url(tmp_path: Path) -> None:
    folder = place(f"memory:/{tmp_path}") / "sft-1" / "lease"
    with take(folder) as lease:
        assert held_by(folder) == Holder.here()
        assert refusal(folder) == HELD_HERE
        reader = LeaseReader(folder, lease.number, lease.token)
        lease.ask("stop")
        wait_until(lambda: reader.wish == "stop")
    assert held_by(folder) is None
    with take(folder) as lease:
        assert lease.number == 2
    take(folder).forget()
    assert newest(folder) == 0
