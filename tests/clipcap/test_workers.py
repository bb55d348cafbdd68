"""Whatever a file does to its worker: one answer for each, the neighbours' own, in time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clipcap import inspection, nursery, workers, zygote
from clipcap.errors import ClipcapError, ImageError
from clipcap.images import ImageSettings
from clipcap.nursery import Worker
from clipcap.sharedmemory import SharedMemory
from clipcap.workers import CHUNK, Pool, WorkerSettings
from tests import strangers
from tests.pictures import picture

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and Linux's limits")
SECONDS = 1.0
MEMORY = 2**27


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Two workers that obey."""
    settings = WorkerSettings(processes=2, seconds=SECONDS, memory_bytes=MEMORY)
    pool = Pool(strangers.__name__, settings)
    yield pool
    pool.close()


@pytest.fixture
def one() -> Iterator[Pool]:
    """One worker: all is done in its order."""
    settings = WorkerSettings(processes=1, seconds=SECONDS, memory_bytes=MEMORY)
    pool = Pool(strangers.__name__, settings)
    yield pool
    pool.close()


def answers(pool: Pool, *items: Sequence[Any], shared: dict[str, Any] | None = None) -> list[Any]:
    found = [future.result(30) for future in pool.submit(shared or {}, items)]
    return [answer for chunk in found for answer in chunk]


def told(answer: object) -> object:
    return answer.reason if isinstance(answer, ImageError) else answer


def children(process: int) -> set[int]:
    """Return the processes that a process started and has not buried."""
    listed = Path(f"/proc/{process}/task").glob("*/children")
    return {int(child) for path in listed for child in path.read_text().split()}


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def is_dead(process: int) -> bool:
    return not is_alive(process)


def comes(what: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until something is so."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if what():
            return True
        time.sleep(0.02)
    return what()


@contextmanager
def silent(pool: Pool, zygote: int) -> Iterator[None]:
    """Stop the process that starts workers, as a machine does that swaps; later it goes on."""
    pool._nursery._line.settimeout(0.3)
    os.kill(zygote, signal.SIGSTOP)
    try:
        yield
    finally:
        if is_alive(zygote):
            os.kill(zygote, signal.SIGCONT)


class TestAnswers:
    """What is asked for comes back, in order."""

    def test_every_item_has_its_answer_in_order(self, pool: Pool) -> None:
        numbers = list(range(5 * CHUNK + 3))
        assert answers(pool, *(["same", n] for n in numbers)) == numbers
        assert len(pool.submit({}, [["same", n] for n in numbers])) == 6
        assert pool.submit({}, []) == []
        assert not pool.replaced

    def test_what_is_shared_reaches_each(self, pool: Pool) -> None:
        shared = {"settings": {"a": [1, None, "ä"]}}
        assert answers(pool, ["shared"], ["shared"], shared=shared) == [shared, shared]

    @pytest.mark.parametrize(
        "value", [None, "", {"reason": "timeout", "message": "is no error"}, {"bug": 1}, [1, [2]]]
    )
    def test_an_answer_may_be_any_value(self, pool: Pool, value: object) -> None:
        assert answers(pool, ["same", value]) == [value]

    def test_long_messages_pass_both_ways(self, pool: Pool) -> None:
        text = "x" * 3_000_000
        assert answers(pool, ["same", text], ["same", 1]) == [text, 1]

    def test_a_refusal_is_an_answer(self, pool: Pool) -> None:
        found = answers(pool, ["refuse", "truncated"], ["same", 2])
        assert isinstance(found[0], ImageError)
        assert (found[0].reason, str(found[0]), found[1]) == ("truncated", "no", 2)
        assert not pool.replaced

    def test_both_workers_work(self, pool: Pool) -> None:
        assert len(set(answers(pool, *[["process"]] * CHUNK, *[["sleep", 0.3]] * 2))) == 2
        asked = pool.submit({}, [["sleep", 0.3]] * CHUNK + [["process"]] * CHUNK)
        assert len(asked) == 2
        assert asked[1].result(2)
        assert not asked[0].done()

    def test_many_threads_share_them(self, pool: Pool) -> None:
        def ask(n: int) -> list[Any]:
            if n % 10 == 0:
                return [told(answer) for answer in answers(pool, ["same", n], ["crash"])]
            return answers(pool, ["same", n], ["same", -n])

        with ThreadPoolExecutor(16) as threads:
            found = list(threads.map(ask, range(200)))
        expected = [[n, -n if n % 10 else "decode_failed"] for n in range(200)]
        assert found == expected

    def test_what_was_cancelled_is_not_done(self, one: Pool, tmp_path: Path) -> None:
        answers(one, ["process"])
        [slow] = one.submit({}, [["sleep", 0.5]])
        mark = tmp_path / "mark"
        [cancelled] = one.submit({}, [["crash_once", str(mark)]])
        assert cancelled.cancel()
        assert slow.result(5) == ["slept"]
        assert answers(one, ["same", 1]) == [1]
        assert not mark.exists()


class TestHarm:
    """A file that harms its worker loses itself and nobody else."""

    @pytest.mark.parametrize(
        ("harm", "reason", "word", "kind"),
        [
            (["crash"], "decode_failed", "Segmentation fault", "crashed"),
            (["crash", signal.SIGABRT], "decode_failed", "Abort", "crashed"),
            (["crash", signal.SIGKILL], "oom", "killed from outside", "oom"),
            (["leave_at_once", 3], "decode_failed", "exit code 3", "crashed"),
            (["leave_at_once", 0], "decode_failed", "exit code 0", "crashed"),
            (["sleep", 60], "timeout", "longer than 1 s", "hung"),
            (["spin"], "timeout", "longer than 1 s", "hung"),
            pytest.param(["allocate"], "oom", "more memory", "oom", marks=LINUX),
            pytest.param(["allocate_unseen"], "decode_failed", "Abort", "crashed", marks=LINUX),
            (["refuse", "oom"], "oom", "more memory", "oom"),
        ],
    )
    def test_its_neighbours_have_their_answers(
        self, pool: Pool, harm: list[Any], reason: str, word: str, kind: str
    ) -> None:
        answers(pool, ["process"])  # all is imported
        started = time.monotonic()
        found = answers(pool, *(["same", n] for n in range(5)), harm, *(["same", n] for n in "ab"))
        assert [told(answer) for answer in found] == [0, 1, 2, 3, 4, reason, "a", "b"]
        assert word in str(found[5])
        assert set(pool.replaced) == {kind}
        assert time.monotonic() - started < 10 * SECONDS

    @pytest.mark.parametrize("at", [0, 3, CHUNK - 1])
    def test_wherever_it_stands(self, pool: Pool, at: int) -> None:
        items: list[list[Any]] = [["same", n] for n in range(2 * CHUNK)]
        items[at] = items[CHUNK + at] = ["crash"]
        expected = [n if n % CHUNK != at else "decode_failed" for n in range(2 * CHUNK)]
        assert [told(answer) for answer in answers(pool, *items)] == expected

    def test_nothing_but_harm(self, pool: Pool) -> None:
        harm: list[list[Any]] = [["crash"], ["leave_at_once", 1]]
        found = answers(pool, *harm * CHUNK)
        assert [told(answer) for answer in found] == ["decode_failed"] * 2 * CHUNK

    def test_each_that_hangs_takes_its_time_once(self, pool: Pool) -> None:
        started = time.monotonic()
        found = answers(pool, ["sleep", 60], ["same", 1], ["sleep", 60])
        assert [told(answer) for answer in found] == ["timeout", 1, "timeout"]
        assert pool.replaced == {"hung": 2}
        assert time.monotonic() - started < 10 * SECONDS

    def test_many_that_are_slow_together_are_not_late(self, pool: Pool) -> None:
        found = answers(pool, *[["sleep", 0.6]] * 4)
        assert found == ["slept"] * 4
        assert not pool.replaced

    def test_who_is_alone_in_a_new_process_is_judged_at_once(self, one: Pool) -> None:
        assert told(answers(one, ["crash"])[0]) == "decode_failed"
        assert one.replaced == {"crashed": 1}

    def test_who_may_be_innocent_is_asked_again_alone(self, one: Pool, tmp_path: Path) -> None:
        """A heap that an earlier file has broken falls on a later one."""
        mark = str(tmp_path / "mark")
        assert answers(one, ["same", 0], ["crash_once", mark], ["same", 2]) == [0, "well", 2]
        assert one.replaced == {"crashed": 1}

    @LINUX
    def test_who_grows_slowly_is_replaced_between_files(self, one: Pool) -> None:
        found = answers(one, *[["grow", 2**23]] * 10 * CHUNK)  # 640 MB in all, 64 are allowed
        assert all(isinstance(process, int) for process in found)
        assert len(set(found)) >= 3
        assert one.replaced["grown"] >= 2
        assert 2**26 < one.peak_bytes < 2**29

    @LINUX
    def test_memory_that_is_shared_is_no_growth(self, one: Pool) -> None:
        """What a worker sees of a batch is not its own."""
        with SharedMemory(2**27) as memory:
            memory.write(b"\1", 2**26)
            process = answers(one, ["process"])
            assert answers(one, ["look", memory.path]) == [1]
            assert answers(one, ["process"]) == process

    def test_a_bug_is_raised_with_its_words(self, pool: Pool) -> None:
        for harm, word in ((["bug"], "a bug of ours"), (["leave", 3], "SystemExit")):
            [asked] = pool.submit({}, [["same", 1], harm])
            with pytest.raises(RuntimeError, match=word):
                asked.result(10)
        assert answers(pool, ["same", 1]) == [1]

    def test_what_is_no_json_fails_where_it_is_asked(self, pool: Pool) -> None:
        [asked] = pool.submit({"a": object()}, [["same", 1]])
        with pytest.raises(TypeError, match="JSON"):
            asked.result(10)
        assert answers(pool, ["same", 1]) == [1]

    def test_words_of_nobody_are_no_answers(self, pool: Pool) -> None:
        found = answers(pool, ["same", 1], ["scribble"], ["same", 2])
        assert [told(answer) for answer in found] == [1, "decode_failed", 2]

    def test_it_can_neither_read_nor_write_where_the_caller_does(self) -> None:
        code = (
            "from clipcap import workers\nimport sys\n"
            "pool = workers.pool('tests.strangers', workers.WorkerSettings(processes=1))\n"
            "[asked] = pool.submit({}, [['talk', 'LOUD']])\n"
            "sys.stdout.write(repr((asked.result(), sys.stdin.read())))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], input="ours", capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "([''], 'ours')", "")


@LINUX
class TestProcesses:
    """None is left behind, and none is lost for good."""

    def test_no_file_stays_open_and_nobody_unburied(self, pool: Pool) -> None:
        answers(pool, *[["process"]] * 4 * CHUNK)
        [zygote] = set(answers(pool, ["zygote"]))
        [opened] = answers(pool, ["files_open"])
        held = len(list(Path("/proc/self/fd").iterdir()))
        harm: list[list[Any]] = [["crash"], ["same", 1]]
        for _ in range(10):
            answers(pool, *harm * 4)
        assert pool.replaced["crashed"] >= 40
        assert len(list(Path("/proc/self/fd").iterdir())) <= held + 1  # a worker not yet started
        assert len(children(zygote)) <= 2
        assert all(is_alive(child) for child in children(zygote))
        assert answers(pool, ["files_open"]) == [opened]

    def test_none_is_left_when_it_is_closed(self, pool: Pool) -> None:
        held = threading.active_count()
        pids = {*answers(pool, *[["process"]] * 4 * CHUNK), *answers(pool, ["zygote"])}
        hung = pool.submit({}, [["spin"]])
        waiting = pool.submit({}, [["sleep", 60]] * 4 * CHUNK)
        time.sleep(0.2)
        started = time.monotonic()
        pool.close()
        assert time.monotonic() - started < 5
        assert comes(lambda: not any(is_alive(pid) for pid in pids))
        for asked in (*hung, *waiting):
            with pytest.raises(ClipcapError, match="closed"):
                asked.result(1)
        assert threading.active_count() == held - 2
        with pytest.raises(ClipcapError, match="closed"):
            pool.submit({}, [["same", 1]])
        pool.close()

    def test_closing_while_it_starts_waits_for_nothing(self) -> None:
        pool = Pool("tests.slow_to_import", WorkerSettings(processes=2))
        asked = pool.submit({}, [["same", 1]])
        started = time.monotonic()
        pool.close()
        assert time.monotonic() - started < 5
        with pytest.raises(ClipcapError, match="closed"):
            asked[0].result(1)

    def test_opening_and_closing_leaves_no_file_open(self) -> None:
        def once() -> int:
            pool = Pool(strangers.__name__, WorkerSettings(processes=2, seconds=SECONDS))
            answers(pool, ["same", 1])
            pool.close()
            return len(list(Path("/proc/self/fd").iterdir()))

        rounds = 6
        counts = [once() for _ in range(rounds)]  # other tests' workers may come and go meanwhile
        assert counts[-1] - counts[0] < rounds - 1

    def test_whoever_is_ended_from_outside_is_replaced(self, one: Pool) -> None:
        [process] = answers(one, ["process"])
        os.kill(process, signal.SIGKILL)
        [other] = answers(one, ["process"])
        assert other != process
        assert one.replaced == {"oom": 1}

    def test_a_file_is_not_to_blame_for_what_happened_before_it(self, one: Pool) -> None:
        """Between two requests, with the last item of the one before on the board."""
        [process, *_] = answers(one, ["process"], ["same", 1])
        os.kill(process, signal.SIGSEGV)
        assert answers(one, ["same", 2], ["same", 3]) == [2, 3]

    def test_the_one_that_forks_them_is_replaced(self, pool: Pool) -> None:
        pids = set(answers(pool, *[["process"]] * 2 * CHUNK))
        [zygote] = answers(pool, ["zygote"])
        asked = pool.submit({}, [["sleep", 0.3]] * 2 + [["process"]])
        time.sleep(0.1)
        os.kill(zygote, signal.SIGKILL)
        [[*slept, process]] = [future.result(30) for future in asked]
        assert slept == ["slept"] * 2
        assert process not in pids
        assert not any(is_alive(pid) for pid in (zygote, *pids))
        assert pool.replaced["lost"] >= 1

    def test_but_not_for_ever(self, one: Pool) -> None:
        for _ in range(9):
            [process, zygote] = answers(one, ["process"], ["zygote"])
            os.kill(zygote, signal.SIGKILL)
            assert comes(partial(is_dead, process))
        with pytest.raises(ClipcapError, match=r"9 times.*no more memory"):
            answers(one, ["same", 1])

    def test_one_that_cannot_start_says_so(self, capfd: pytest.CaptureFixture[str]) -> None:
        pool = Pool("tests.no_such_module", WorkerSettings(processes=2))
        for asked in pool.submit({}, [["same", 1]] * 2 * CHUNK):
            with pytest.raises(
                ClipcapError, match=r"tests\.no_such_module ended 1 times.* with 1:"
            ):
                asked.result(30)
        assert "ModuleNotFoundError" in capfd.readouterr().err
        pool.close()

    @pytest.mark.parametrize("harm", [["spin"], ["sleep", 60], ["same", 1]])
    def test_all_end_when_the_parent_is_killed(self, harm: list[Any]) -> None:
        code = (
            "from clipcap import workers\nimport json, sys, time\n"
            "pool = workers.pool('tests.strangers', workers.WorkerSettings(processes=2))\n"
            "[asked] = pool.submit({}, [['process'], ['zygote']])\n"
            "print(json.dumps(asked.result()), flush=True)\n"
            f"pool.submit({{}}, [{harm!r}])\n"
            "time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            pids = json.loads(parent.stdout.readline())
            time.sleep(0.3)
            assert all(is_alive(pid) for pid in pids)
            parent.kill()
        assert comes(lambda: not any(is_alive(pid) for pid in pids))

    def test_all_end_when_the_parent_is_killed_and_its_child_lives(self) -> None:
        """A process that the parent forked holds its sockets open."""
        code = (
            "from clipcap import workers\nimport json, os, time\n"
            "pool = workers.pool('tests.strangers', workers.WorkerSettings(processes=1))\n"
            "[asked] = pool.submit({}, [['process'], ['zygote']])\n"
            "child = os.fork() or time.sleep(60) or os._exit(0)\n"
            "print(json.dumps([child, *asked.result()]), flush=True)\n"
            "time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            child, *pids = json.loads(parent.stdout.readline())
            parent.kill()
        assert comes(lambda: not any(is_alive(pid) for pid in pids))
        os.kill(child, signal.SIGKILL)

    @pytest.mark.parametrize("last", ["", "raise SystemExit(0)", "raise KeyError", "os._exit(0)"])
    def test_a_parent_that_ends_takes_them_along_at_once(self, last: str) -> None:
        code = (
            "from clipcap import workers\nimport json, os, time\n"
            "pool = workers.pool('tests.strangers', workers.WorkerSettings(processes=2))\n"
            "[asked] = pool.submit({}, [['process'], ['zygote']])\n"
            "print(json.dumps([time.monotonic(), *asked.result()]), flush=True)\n"
            f"pool.submit({{}}, [['spin']])\ntime.sleep(0.1)\n{last}"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        began, *pids = json.loads(done.stdout)
        assert "_exit" in last or not is_alive(pids[1]), "it was waited for"
        assert time.monotonic() - began < 10
        assert done.returncode == ("KeyError" in last)
        assert ("KeyError" in done.stderr) == ("KeyError" in last)
        assert comes(lambda: not any(is_alive(pid) for pid in pids))

    def test_a_forked_process_has_its_own(self) -> None:
        code = (
            "from clipcap import workers\nimport os, sys\n"
            "from clipcap.errors import ClipcapError\n"
            "settings = workers.WorkerSettings(processes=1)\n"
            "pool = workers.pool('tests.strangers', settings)\n"
            "[asked] = pool.submit({}, [['zygote']])\n"
            "[ours] = asked.result()\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    try:\n"
            "        pool.submit({}, [['zygote']])\n"
            "    except ClipcapError as error:\n"
            "        assert 'another process' in str(error)\n"
            "        own = workers.pool('tests.strangers', settings)\n"
            "        assert own.submit({}, [['zygote']])[0].result() != [ours]\n"
            "        sys.exit(5)\n"
            "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5\n"
            "assert pool.submit({}, [['zygote']])[0].result() == [ours]\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_they_give_way_to_the_model(self, pool: Pool) -> None:
        assert answers(pool, ["limits"]) == [[min(os.nice(0) + 10, 19), 500]]

    def test_who_has_nothing_to_do_gives_its_memory_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(workers, "_IDLE", 0.2)
        pool = Pool(strangers.__name__, WorkerSettings(processes=1))
        [process] = answers(pool, ["process"])
        assert comes(lambda: not is_alive(process))
        assert answers(pool, ["process"]) != [process]
        assert not pool.replaced
        pool.close()


@LINUX
class TestOutOfStep:
    """An answer that fails ends the process which starts workers: none is taken for another's."""

    def test_a_late_answer_is_nobodys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers, "_IDLE", 0.3)
        with closing(Pool(strangers.__name__, WorkerSettings(processes=1))) as pool:
            [process, old] = answers(pool, ["process"], ["zygote"])
            with silent(pool, old):  # the worker has nothing to do and is to be buried
                comes(partial(is_dead, old), 2)
            assert comes(partial(is_dead, process))
            for _ in range(3):
                [process] = answers(pool, ["process"])
                assert comes(partial(is_dead, process))
            assert answers(pool, ["zygote"]) != [old]
            assert not pool.replaced

    def test_it_costs_no_other_worker_its_files(
        self, pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers(pool, *[["sleep", 0.1]] * 2 * CHUNK)  # both have started
        [old] = answers(pool, ["zygote"])
        bury = pool._nursery.bury

        def late(child: nursery._Child) -> tuple[int | None, int]:
            monkeypatch.undo()
            with silent(pool, old):
                return bury(child)

        monkeypatch.setattr(pool._nursery, "bury", late)
        slow = pool.submit({}, [["sleep", 0.3]] * CHUNK)
        items = [["same", 1], ["sleep", 60], ["same", 2]]
        assert [told(answer) for answer in answers(pool, *items)] == [1, "timeout", 2]
        assert slow[0].result(30) == ["slept"] * CHUNK
        for n in range(4):
            items = [["same", n], ["crash"]] * CHUNK
            found = answers(pool, *items)
            assert [told(answer) for answer in found] == [n, "decode_failed"] * CHUNK
        assert is_dead(old)
        assert len(set(answers(pool, *[["zygote"]] * 4 * CHUNK)) - {old}) == 1

    @pytest.mark.parametrize("place", [0, 1], ids=["bury", "fork"])
    @pytest.mark.parametrize(
        "babble", [None, 7, "7", {}, [], [True], [1.5], [0, None], [1, 2, 3], EOFError, ValueError]
    )
    def test_what_is_no_answer_ends_it(
        self, one: Pool, monkeypatch: pytest.MonkeyPatch, babble: object, place: int
    ) -> None:
        [process, old] = answers(one, ["process"], ["zygote"])
        line, receive = one._nursery._line, zygote.receive
        heard: list[object] = []

        def misheard(source: socket.socket) -> object:
            said = receive(source)
            if source is not line:
                return said
            heard.append(said)
            if len(heard) != place + 1:
                return said
            if isinstance(babble, type):
                raise babble
            return babble

        monkeypatch.setattr(zygote, "receive", misheard)
        os.kill(process, signal.SIGKILL)
        [*same, other] = answers(one, ["same", 1], ["same", 2], ["zygote"])
        assert same == [1, 2]
        assert len(heard) == place + 1
        assert other != old
        assert is_dead(old)

    def test_whatever_ending_a_worker_raises_nobody_waits(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        ended: list[int] = []

        def end(_worker: Worker) -> int | None:
            ended.append(len(ended))
            raise KeyError("a bug of ours")

        monkeypatch.setattr(workers, "_IDLE", 0.1)
        monkeypatch.setattr(Worker, "end", end)
        with closing(Pool(strangers.__name__, WorkerSettings(processes=1))) as pool:
            for n in range(3):
                assert comes(partial(ended.__contains__, n))
                assert answers(pool, ["same", n]) == [n]
            [asked] = pool.submit({}, [["crash"]])
            with pytest.raises(KeyError, match="a bug of ours"):
                asked.result(10)
            monkeypatch.undo()
            assert answers(pool, ["same", 1]) == [1]
        assert "a bug of ours" in caplog.text


class TestPools:
    """One for each module and settings, as long as the process lives."""

    def test_there_is_one_for_equal_settings(self) -> None:
        first = workers.pool(strangers.__name__, WorkerSettings(processes=1))
        assert workers.pool(strangers.__name__, WorkerSettings(processes=1)) is first
        other = workers.pool(strangers.__name__, WorkerSettings(processes=1, seconds=5))
        assert other is not first
        assert answers(first, ["same", 1]) == answers(other, ["same", 1]) == [1]
        workers.close()
        with pytest.raises(ClipcapError, match="closed"):
            first.submit({}, [["same", 1]])
        again = workers.pool(strangers.__name__, WorkerSettings(processes=1))
        assert answers(again, ["same", 2]) == [2]
        workers.close()

    def test_as_many_as_this_process_may_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert WorkerSettings().count == workers.cores() >= 1
        assert WorkerSettings(processes=3).count == 3
        if sys.platform == "linux":
            monkeypatch.setattr(os, "sched_getaffinity", lambda _process: range(64))
        for text, count in (("max 100000", 64), ("150000 100000", 2), ("9900000 100000", 64)):
            monkeypatch.setattr(Path, "read_text", lambda _path, text=text: text)
            assert workers.cores() == count or sys.platform != "linux"


class TestFiles:
    """Files in memory, each with what a worker makes of it."""

    def test_each_has_its_answer_in_order(self) -> None:
        settings = {"settings": ImageSettings().model_dump()}
        files = [picture(n) if n % 5 else bytes([n] * n) for n in range(60)]
        pool = workers.pool(inspection.__name__, WorkerSettings(processes=2))
        found = list(pool.each(settings, iter(files)))
        assert len(found) == len(files)
        for n, (data, answer) in enumerate(zip(files, found, strict=True)):
            if n % 5:
                alone = inspection.inspect(data, ImageSettings())
                assert inspection.received(answer) == alone
            else:
                assert told(answer) == ("not_an_image" if n else "empty_file")
        assert list(pool.each(settings, [])) == []
        workers.close()

    def test_no_more_is_read_than_is_worked_on(self, one: Pool) -> None:
        read: list[int] = []

        def files() -> Iterator[bytes]:
            for n in range(100):
                read.append(n)
                yield b"x"

        found = one.each({}, files())
        next(found)
        assert len(read) == 3 * CHUNK

    def test_large_files_go_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers, "_PARCEL", 100)
        held = [[len(data) for data in parcel] for parcel in workers._parcels([bytes(60)] * 5)]
        assert held == [[60, 60], [60, 60], [60]]
