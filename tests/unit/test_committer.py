"""The committer answers each request once, with what made its own batch durable, and never before that."""

import gevent
import pytest
from falcon.testing import TestClient
from gevent.event import Event

from app.batch import KEYLESS, Batch
from app.committer import Bounds, Committer
from app.edge import create_app
from app.errors import NotDurable, StreamUnavailable
from app.settings import Settings
from tests.journal import DEADLINE_S as PATIENCE_S

DEADLINE_S = 0.2
STALL_S = 0.3
MINUTE = "2026-01-31T12:00:00.000000Z"
REFUSED = StreamUnavailable("OOM", "full")
FULL = NotDurable("wal_full", "no room")


class Target:
    """A stream: keeps the groups that it is given; each waits for `gate`, and then does as `answer` says."""

    def __init__(self, answer=lambda batches: [None] * len(batches)):
        self.groups = []
        self.answer = answer
        self.gate = Event()
        self.gate.set()
        self.probe_error = None
        self.opened = 0

    def open(self):
        self.opened += 1

    def append(self, batches):
        self.groups.append([batch.batch_id for batch in batches])
        self.gate.wait()
        return self.answer(batches)

    def probe(self, max_bytes):
        if self.probe_error:
            raise self.probe_error


class Wal:
    """A WAL: keeps the groups that it is given, once `gate` is open; `error` is raised instead."""

    def __init__(self, error=None):
        self.begun = 0
        self.groups = []
        self.sealed = 0
        self.error = error
        self.gate = Event()
        self.gate.set()

    def append(self, batches):
        self.begun += 1
        self.gate.wait()
        self.check()
        self.groups.append([batch.batch_id for batch in batches])

    def check(self):
        if self.error:
            raise self.error

    def seal(self):
        self.sealed += 1

    def busy_s(self):
        return 0.0


def batch(name, size=1):
    return Batch(str(name), 1, "", "", bytes(size))


def make(target, wal=None, deadline_s=5.0, **modes):
    """Returns a committer whose WAL, unless given, has no room: then only the stream confirms."""
    return Committer(target, wal or Wal(FULL), target, Bounds(deadline_s, 1 << 20), **modes)


def outcomes(committer, *batches):
    """Commits batches at the same time and returns for each what confirmed it, or the error that its request got."""
    def commit(one):
        try:
            return committer.commit(one)
        except NotDurable as error:
            return error

    greenlets = [gevent.spawn(commit, one) for one in batches]
    gevent.joinall(greenlets, timeout=10, raise_error=True)
    assert all(greenlet.dead for greenlet in greenlets), "a request was never answered"
    return [greenlet.value for greenlet in greenlets]


def until(condition):
    with gevent.Timeout(PATIENCE_S):
        while not condition():
            gevent.sleep(0.01)


def test_a_batch_is_confirmed_when_the_target_has_confirmed_it():
    target = Target()
    target.gate.clear()
    committer = make(target)
    request = gevent.spawn(committer.commit, batch("a"))
    gevent.sleep(0)
    gevent.sleep(0)
    assert target.groups == [["a"]] and not request.dead
    target.gate.set()
    request.get(timeout=5)


def test_what_waits_while_a_group_is_on_its_way_is_the_next_group_in_order():
    target = Target()
    target.gate.clear()
    committer = make(target)
    first = gevent.spawn(committer.commit, batch(0))
    gevent.sleep(0)
    gevent.sleep(0)
    rest = [gevent.spawn(committer.commit, batch(number)) for number in range(1, 101)]
    gevent.sleep(0)
    target.gate.set()
    gevent.joinall([first, *rest], timeout=5, raise_error=True)
    assert target.groups == [["0"], [str(number) for number in range(1, 101)]]


def test_a_group_ends_before_it_is_too_large_and_takes_at_least_one():
    target = Target()
    mib = 1 << 20
    batches = [*(batch(name, 3 * mib) for name in "abcde"), batch("f", 20 * mib)]
    assert outcomes(make(target), *batches) == ["stream"] * 6
    assert target.groups == [["a", "b"], ["c", "d"], ["e"], ["f"]]


@pytest.mark.parametrize("has_room", [True, False])
def test_what_the_stream_refuses_goes_to_the_wal_and_the_rest_does_not(has_room):
    def every_second_refused(batches):
        return [REFUSED if int(one.batch_id) % 2 else None for one in batches]

    wal = Wal(None if has_room else FULL)
    found = outcomes(make(Target(every_second_refused), wal), *map(batch, range(10)))
    assert found == ["stream", "wal" if has_room else FULL] * 5
    assert wal.groups == ([["1", "3", "5", "7", "9"]] if has_room else [])


@pytest.mark.parametrize("failure", [StreamUnavailable("connect", "refused"), ValueError("a fault of ours"), OSError()])
def test_when_a_group_fails_and_the_wal_has_no_room_all_of_its_requests_are_told(failure):
    def fail(batches):
        target.answer = lambda batches: [None] * len(batches)
        raise failure

    target = Target(fail)
    committer = make(target)
    assert all(isinstance(found, NotDurable) for found in outcomes(committer, *map(batch, "abc")))
    until(lambda: outcomes(committer, batch("d")) == ["stream"])


@pytest.mark.parametrize("count", [0, 1])
def test_a_stream_that_answers_for_fewer_batches_confirms_none_that_it_did_not_name(count):
    found = outcomes(make(Target(lambda batches: [None] * count)), batch("a"), batch("b"))
    assert [outcome == "stream" for outcome in found] == [index < count for index in range(2)]


def test_a_stream_that_does_not_answer_is_given_up_after_the_deadline_and_nobody_waits_for_two():
    target, wal = Target(), Wal()
    target.gate.clear()
    target.probe_error = REFUSED
    large = [batch(number, 8 << 20) for number in range(5)]  # each a group of its own
    assert outcomes(make(target, wal, DEADLINE_S), *large) == ["wal"] * 5
    assert target.groups == [["0"]]
    assert wal.groups == [[str(number)] for number in range(5)]


def test_while_the_stream_is_away_nothing_is_sent_to_it_until_a_probe_finds_it():
    target, wal = Target(lambda batches: [REFUSED] * len(batches)), Wal()
    target.probe_error = REFUSED
    committer = make(target, wal)
    for _ in range(3):
        assert outcomes(committer, batch("a")) == ["wal"]
    assert target.groups == [["a"]]
    target.answer, target.probe_error = (lambda batches: [None] * len(batches)), None
    until(lambda: outcomes(committer, batch("b")) == ["stream"])


def test_a_stream_over_its_bytes_is_away_without_a_request_having_failed():
    target, wal = Target(), Wal()
    target.probe_error = StreamUnavailable("FULL", "over its bytes")
    committer = make(target, wal)
    until(lambda: outcomes(committer, batch("a")) == ["wal"])


def test_the_segment_is_sealed_once_the_stream_is_back_and_not_before():
    target, wal = Target(lambda batches: [REFUSED] * len(batches)), Wal()
    target.probe_error = REFUSED
    committer = make(target, wal)
    assert outcomes(committer, batch("a")) == ["wal"]
    gevent.sleep(1.2)  # two probes that find it away
    assert wal.sealed == 0
    target.probe_error = None
    until(lambda: wal.sealed)


def test_in_write_ahead_mode_the_stream_is_not_asked():
    target, wal = Target(), Wal()
    assert outcomes(make(target, wal, is_wal_first=True), batch("a"), batch("b")) == ["wal"] * 2
    assert target.groups == [] and wal.groups == [["a", "b"]]


def test_what_is_meant_for_the_wal_goes_there_and_says_nothing_about_the_stream(caplog):
    target, wal = Target(), Wal()
    committer = make(target, wal)
    waiting = [gevent.spawn(committer.commit, batch(number), number % 2 == 1) for number in range(6)]
    gevent.joinall(waiting, timeout=5, raise_error=True)
    assert [one.value for one in waiting] == ["stream", "wal"] * 3
    assert target.groups == [["0", "2", "4"]] and wal.groups == [["1", "3", "5"]]
    assert committer.commit(batch("alone"), True) == "wal" and len(target.groups) == 1
    assert committer.commit(batch("next")) == "stream" and not caplog.records
    until(lambda: wal.sealed)


@pytest.mark.parametrize("failure", [REFUSED, None])
def test_what_is_meant_for_the_wal_is_answered_when_the_stream_fails_its_group(failure):
    def fail(batches):
        if failure:
            raise failure
        return [REFUSED] * len(batches)

    target, wal = Target(fail), Wal()
    target.probe_error = REFUSED
    committer = make(target, wal)
    waiting = [gevent.spawn(committer.commit, batch(number), number == 0) for number in range(3)]
    gevent.joinall(waiting, timeout=5, raise_error=True)
    assert [one.value for one in waiting] == ["wal"] * 3
    assert sorted(sum(wal.groups, [])) == ["0", "1", "2"]


def test_a_wal_that_hangs_keeps_no_request_of_the_stream_waiting():
    target, wal = Target(), Wal()
    wal.gate.clear()
    committer = make(target, wal)
    one = gevent.spawn(committer.commit, batch("for the WAL"), True)
    until(lambda: wal.begun)
    for number in range(5):
        assert outcomes(committer, batch(number), batch(f"{number} too")) == ["stream"] * 2
    target.answer, target.probe_error = (lambda batches: [REFUSED] * len(batches)), REFUSED
    rest = [gevent.spawn(committer.commit, batch(name)) for name in ("refused", "too")]
    until(lambda: len(target.groups) == 6)
    assert not one.dead and not any(request.dead for request in rest)
    wal.gate.set()
    gevent.joinall([one, *rest], timeout=5, raise_error=True)
    assert wal.groups == [["for the WAL"], ["refused", "too"]]


def test_a_stream_that_hangs_keeps_nothing_waiting_that_is_meant_for_the_wal():
    target, wal = Target(), Wal()
    target.gate.clear()
    committer = make(target, wal)
    one = gevent.spawn(committer.commit, batch("for the stream"))
    until(lambda: target.groups)
    assert [committer.commit(batch(number), True) for number in range(5)] == ["wal"] * 5
    assert not one.dead
    target.gate.set()
    assert one.get(timeout=5) == "stream"


def test_what_waits_for_a_stream_that_goes_away_is_merged_with_what_comes_for_the_wal():
    target, wal = Target(lambda batches: [REFUSED] * len(batches)), Wal()
    target.gate.clear()
    target.probe_error = REFUSED
    wal.gate.clear()
    committer = make(target, wal)

    def post():
        return committer.commit(Batch(committer.next_id(), 1, KEYLESS, MINUTE, b"row\n"))

    requests = [gevent.spawn(post)]
    until(lambda: target.groups)
    requests += [gevent.spawn(post) for _ in range(3)]
    target.gate.set()
    until(lambda: wal.begun)
    requests += [gevent.spawn(post) for _ in range(3)]
    gevent.sleep(0)
    wal.gate.set()
    gevent.joinall(requests, timeout=5, raise_error=True)
    # What waited while the first was on its way to the stream is one batch beside it, and so is what came after that.
    assert [len(group) for group in wal.groups] == [2, 1] and len(target.groups) == 1


def test_a_sign_of_life_is_asked_for_without_a_batch():
    target = Target()
    assert outcomes(make(target), None) == ["stream"] and target.groups == [[]]


def away():
    """Returns a stream that takes nothing."""
    target = Target(lambda batches: [REFUSED] * len(batches))
    target.probe_error = REFUSED
    return target


def test_whether_there_is_room_is_asked_each_time_and_not_what_the_last_request_found():
    wal = Wal(FULL)
    committer = make(away(), wal)
    until(lambda: committer.ended() or outcomes(committer, None) == [FULL])  # although nobody was refused yet
    assert outcomes(committer, batch("a")) == [FULL]
    wal.error = None
    assert outcomes(committer, None) == ["wal"]
    wal.error = FULL
    assert outcomes(committer, None) == [FULL]


@pytest.mark.parametrize("hangs", ["stream", "wal"])
def test_a_lane_that_has_work_and_does_not_come_round_is_named_also_to_who_waits(hangs):
    target, wal = Target(), Wal()
    committer = Committer(target, wal, target, Bounds(60.0, 1 << 20), stall_s=STALL_S)
    committer.check()
    (target if hangs == "stream" else wal).gate.clear()
    asked = gevent.spawn(committer.check)
    one = gevent.spawn(committer.commit, batch("a"), hangs == "wal")
    if hangs == "stream":
        with pytest.raises(NotDurable, match=f"{hangs}: has not come round for"):
            asked.get(timeout=5)
    gevent.sleep(STALL_S)
    with pytest.raises(NotDurable, match=f"lane {hangs}: has not come round for") as found:
        committer.check()
    assert found.value.cause == "stalled" and committer.ended() == []
    (target if hangs == "stream" else wal).gate.set()
    one.get(timeout=5)
    committer.check()


class Strange(BaseException):
    """Nobody catches it."""


@pytest.mark.parametrize("end", [gevent.GreenletExit, Strange])
def test_when_a_lane_s_greenlet_ends_nobody_waits_for_it_and_it_is_told(end, caplog):
    def fail(batches):
        raise end()

    committer = make(Target(fail), Wal())
    client = TestClient(create_app(committer, None, Settings()))
    assert client.simulate_get("/livez").status_code == 200
    found = outcomes(committer, batch("in hand"))
    assert [error.cause for error in found] == ["internal"]
    until(committer.ended)
    assert committer.ended() == ["stream"]
    told = client.simulate_get("/livez")
    assert told.status_code == 503 and "lane stream: has ended" in told.json["detail"]
    assert [error.cause for error in outcomes(committer, batch("later"), None)] == ["internal"] * 2
    assert committer.commit(batch("for the WAL"), True) == "wal"
    assert [record.levelname for record in caplog.records if "lane_ended" in record.message] == ["CRITICAL"]


def test_a_change_of_state_is_logged_once(caplog):
    target = Target(lambda batches: [REFUSED] * len(batches))
    target.probe_error = REFUSED
    committer = make(target, Wal())
    for _ in range(3):
        outcomes(committer, batch("a"))
    target.answer, target.probe_error = (lambda batches: [None] * len(batches)), None
    until(lambda: outcomes(committer, batch("a")) == ["stream"])
    assert [record.message.split()[0] for record in caplog.records] == ["redis_unavailable", "redis_available"]
