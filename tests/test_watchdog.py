"""Laws of the watchdog: a job ends if nobody makes progress, and only then; it says where each rank is."""

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from jobs import wait_for

from lpnet import launch
from lpnet.phases import leave, note, observe, observers, phase, tell
from lpnet.slab import Comm
from lpnet.trace import Recorder
from lpnet.watchdog import Beat, dog, watching
from lpnet.watchdog.dog import Watchdog
from lpnet.watchdog.links import Links

STALL = 1.0


def test_phases_are_beats_and_say_where_a_rank_is() -> None:
    comm, beat = Comm(), Beat()
    with phase(comm, "before"):
        observe(comm, beat)
    assert (beat.count, beat.doing()) == (0, "before the first step")
    note(comm, "step", 3)
    with phase(comm, "forward"), phase(comm, "sweep", 1):
        assert beat.doing() == "step 3, forward > sweep (level 1)"
        assert beat.count == 3
    assert (beat.count, beat.doing()) == (5, "step 3")
    leave(comm, beat)
    assert comm.observer is None


def test_several_observe_and_only_those_who_want_numbers_have_them_found_out() -> None:
    comm, beat, asked = Comm(), Beat(), []
    observe(comm, beat)
    tell(comm, "residual", lambda: asked.append(1) or 0.5)  # type: ignore[func-returns-value]
    assert asked == []
    recorder = Recorder(0, time.perf_counter)
    observe(comm, recorder)
    assert observers(comm) == (beat, recorder)
    tell(comm, "residual", lambda: asked.append(1) or 0.5)  # type: ignore[func-returns-value]
    with phase(comm, "outer"), phase(comm, "inner", 2):
        assert beat.doing() == "before the first step, outer > inner (level 2)"
    leave(comm, beat)
    with phase(comm, "alone"):
        pass
    assert len(asked) == 1
    assert [(span[0], span[1]) for span in recorder.spans] == [("inner", 2), ("outer", None), ("alone", None)]
    assert [number[0] for number in recorder.numbers] == ["residual"]
    assert observers(comm) == (recorder,)


class Ranks(Comm):
    """One rank of a job in this process, which says that it would have ended, and how."""

    def __init__(self, rank: int, size: int, ends: list[tuple[int, int]]) -> None:
        self.rank, self.size, self.ends = rank, size, ends

    def abort(self, code: int) -> None:
        self.ends.append((self.rank, code))


class Job:
    """Watchdogs of three ranks in this process."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, int]] = []
        self.running: set[int] = set()
        self.links = [Links() for _ in range(3)]
        at = self.links[0].listen(local=True)
        self.port = at["port"]
        joining = [threading.Thread(target=self.links[rank].connect, args=(at, rank)) for rank in (1, 2)]
        for thread in joining:
            thread.start()
        self.gather(2)
        for thread in joining:
            thread.join()
        self.dogs = [Watchdog(Ranks(rank, 3, self.ends), "test", STALL, self.links[rank]) for rank in range(3)]

    def gather(self, count: int) -> None:
        wait_for(lambda: self.links[0].poll(0.01) == [] and len(self.links[0].peers) == count)

    def start(self, *ranks: int) -> None:
        for rank in ranks:
            self.dogs[rank].start()
            self.running.add(rank)

    def stop(self, *ranks: int) -> None:
        for rank in ranks:
            self.dogs[rank].stop()
            self.running.remove(rank)

    def beat(self, rank: int, seconds: float) -> None:
        """This rank makes progress, and the job goes on."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            note(SimpleNamespace(observer=self.dogs[rank].beat), "step", 7)
            time.sleep(0.01)
        assert self.ends == []


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setattr(dog, "ABORT", 1e6)
    found = Job()
    yield found
    found.stop(*found.running)


def test_a_job_ends_when_nobody_makes_progress(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    job.start(0, 1, 2)
    job.beat(2, 2.5 * STALL)  # the others may be waiting for it
    wait_for(lambda: bool(job.ends), 20)
    assert job.ends == [(0, launch.STALLED)]
    first, *lines = capfd.readouterr().err.splitlines()
    assert first == "test: error: no rank has made progress for 1 s (run.stall); this is where they stand"
    heads = [line for line in lines if not line.startswith("  ")]
    assert heads == ["[ranks 0, 1 of 3] before the first step", "[rank 2 of 3] step 7"]
    assert sum("in test_a_job_ends_when_nobody_makes_progress" in line for line in lines) == 2


def test_a_silent_rank_is_named(job: Job, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dog, "ANSWER", 0.2)
    job.start(0, 1)
    wait_for(lambda: bool(job.ends), 20)
    assert job.ends == [(0, launch.STALLED)]
    assert "[rank 2 of 3] no answer for 1 s; what it said last: nothing" in capfd.readouterr().err


def test_another_rank_speaks_if_the_first_is_silent(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dog, "ABORT", 1e6)
    monkeypatch.setattr(dog, "ANSWER", 0.2)
    job = Job()
    job.start(1)
    job.beat(1, 2.5 * STALL)
    wait_for(lambda: bool(job.ends), 20)
    assert job.ends == [(1, launch.STALLED)]
    said = capfd.readouterr().err
    assert "rank 1 has made no progress for 1 s (run.stall), and rank 0 does not answer" in said
    assert "[rank 0 of 3] no answer for " in said
    assert "[rank 1 of 3] step 7\n  File " in said
    job.stop(1)


def test_a_rank_that_is_gone_ends_the_job_and_one_that_is_done_does_not(
    job: Job, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dog, "LOST", 0.3)
    job.start(0, 1)
    job.stop(1)
    job.beat(0, 2 * dog.LOST)
    job.links[2].close()
    wait_for(lambda: bool(job.ends), 20)
    assert job.ends == [(0, launch.FAILED)]
    assert "rank 2 has ended without a word" in capfd.readouterr().err


def test_a_job_that_was_suspended_goes_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the machine has gone on meanwhile."""
    job.start(0, 1, 2)
    job.beat(1, 0.2)
    shift = time.monotonic
    monkeypatch.setattr(dog, "time", SimpleNamespace(monotonic=lambda: shift() + 1000))
    time.sleep(0.3 * STALL)
    assert job.ends == []


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b'{"secret": "no", "rank": 1}\n', b"x" * 5000, b"[" * 900 + b"\n", b"1\n", b""]
)
def test_strangers_are_sent_away(said: bytes) -> None:
    links = Links()
    at = links.listen(local=True)
    with socket.create_connection(("127.0.0.1", at["port"])) as stranger:
        stranger.sendall(said)
        if not said:
            stranger.shutdown(socket.SHUT_WR)
        stranger.settimeout(0.01)

        def sent_away() -> bool:
            assert links.poll(0.05) == []
            try:
                return stranger.recv(10) == b""
            except TimeoutError:
                return False
            except ConnectionResetError:
                return True

        wait_for(sent_away, 10)
    assert links.peers == {}
    links.close()


def test_nothing_is_left_of_a_watchdog() -> None:
    comm, before = Comm(), threading.active_count()
    for stall in (None, 5.0):
        with watching(comm, "test", stall):
            assert (comm.observer is None) == (stall is None)
        assert comm.observer is None
        assert threading.active_count() == before
