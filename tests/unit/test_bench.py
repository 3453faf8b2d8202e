"""What the benchmark makes of what it measures: rates that hide nothing, and errors that are not taken for figures."""

import shutil
import socket
import sys
import threading

import pytest

from ops.bench import against, checkout, compression, curve, load, peer, schedule, table, wrk
from ops.bench.backlog import Progress
from ops.bench.body import Bodies, events
from ops.bench.client import get, posts
from ops.bench.curve import Turn
from ops.bench.figure import Figure, lines, quantile
from ops.bench.passage import Passage
from ops.bench.poison import poisoned
from ops.errors import BenchFailed
from tests.stub import ANSWER, Stub


def test_a_stall_is_seen_by_all_that_was_due_meanwhile_not_only_by_what_was_on_its_way():
    rate, stall_s = 400, 0.5
    with Stub(stall_at=50, stall_s=stall_s) as stub:
        timing = schedule.run(stub.url, [get(stub.url)], rate, 1.5, connections=8)
    slow = [one for one in timing.latencies_s if one > 0.1]
    # All that were due in the first 0.4 s of the stall waited over 0.1 s, though 8 at most were on their way.
    assert len(slow) > 0.9 * rate * (stall_s - 0.1)
    assert len(timing.latencies_s) == int(rate * 1.5)
    assert timing.max_waiting > 0.9 * rate * stall_s
    assert max(timing.latencies_s) > 0.9 * stall_s


def test_one_event_in_so_many_is_poisoned_in_the_middle_of_them():
    batches = list(Bodies(events(200), 10).fresh(200))
    found = list(poisoned(iter(batches), 500))
    different = [index for index, (before, after) in enumerate(zip(batches, found, strict=True)) if before != after]
    assert different == [24, 74, 124, 174]
    for before, after in ((batches[index].payload, found[index].payload) for index in different):
        lines = [index for index, pair in enumerate(zip(before.split(b"\n"), after.split(b"\n"))) if len(set(pair)) > 1]
        assert lines == [5] and before.count(b"\n") == after.count(b"\n") == 10


def test_a_closed_loop_waits_for_its_last_answers():
    with Stub(stall_at=3, stall_s=0.3) as stub:
        answers, seconds = load.closed(stub.url, [get(stub.url)], 4, 0.1)
        assert answers == stub.count and seconds >= 0.3


def test_what_waits_for_a_connection_is_not_the_generators_lateness():
    with Stub(stall_at=10, stall_s=0.4) as stub:
        timing = schedule.run(stub.url, [get(stub.url)], 200, 1.0, connections=2)
    assert len(timing.late_s) < len(timing.latencies_s) - 50
    assert quantile(sorted(timing.late_s), 0.5) < 0.1 < max(timing.latencies_s)


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 422 No\r\ncontent-length: 0\r\n\r\n",
])
def test_a_refusal_ends_the_measurement(answer):
    with Stub(answer) as stub:
        with pytest.raises(BenchFailed, match=answer.split()[1].decode()):
            load.closed(stub.url, [get(stub.url)], 2, 0.2)
        with pytest.raises(BenchFailed, match=answer.split()[1].decode()):
            schedule.run(stub.url, [get(stub.url)], 100, 0.2, 2)


def test_a_body_larger_than_the_socket_takes_arrives_whole():
    body = b"[" + b"1," * 4_000_000 + b"1]"
    received = []

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            size = 0
            while size < len(request):
                size += len(connection.recv(1 << 20))
            received.append(size)
            connection.sendall(ANSWER)
            connection.recv(1 << 20)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/ingest"
        request, = posts(url, [body])
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        assert load.closed(url, [request], 1, 0.0)[0] == 1
    assert received == [len(request)]


def test_what_wrk_says_is_read():
    text = ("Running 1s test\nRequests/sec: 5\n"
            "tally answers=7 microseconds=2000000 connect=0 read=0 write=0 status=0 timeout=0")
    assert wrk.parse(text) == (7, 2.0)
    with pytest.raises(BenchFailed, match="2 read, 1 timeout"):
        wrk.parse(text.replace("read=0", "read=2").replace("timeout=0", "timeout=1"))
    with pytest.raises(BenchFailed, match="no answer"):
        wrk.parse(text.replace("answers=7", "answers=0"))
    with pytest.raises(BenchFailed, match="said nothing"):
        wrk.parse("unable to connect to 127.0.0.1")


def test_without_wrk_our_own_generator_measures(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert load.generator("auto").name == "own"
    with pytest.raises(BenchFailed, match="apt-get install wrk"):
        load.generator("wrk")


def test_a_line_is_the_median_of_ratios_taken_within_a_round():
    figures = [Figure("p", "c", "w", "events/s", value, "bare COPY", limit, {"cpu_us redis": value})
               for value, limit in ((10, 20), (30, 40), (90, 100))]
    line, = lines(figures)
    assert (line.value, line.limit, line.ratio, line.ratio_min, line.ratio_max) == (30, 40, 0.75, 0.5, 0.9)
    assert line.facts == {"cpu_us redis": 30} and line.rounds == figures
    bare, = lines([Figure("p", "c", "w", "events/s", 5)])
    assert bare.ratio is None


def test_a_point_is_held_against_the_first_before_and_after_it():
    seen = []

    def turn(name, rates):
        seen.append(name)
        return Turn(next(rates), {"name": name})

    rates = iter((100.0, 80.0, 60.0)), iter((90.0, 70.0))
    found = list(curve.by_turns(lambda: turn("first", rates[0]), lambda: turn("point", rates[1]), 2))
    # The machine slows by a fifth a turn, and each ratio is 1 all the same.
    assert [(point.rate, limit) for point, limit in found] == [(90.0, 90.0), (70.0, 70.0)]
    assert seen == ["first", "point", "first", "point", "first"]
    assert all(point.facts["name"] == "point" for point, _ in found)


def test_a_rate_is_of_whole_loads_wherever_in_one_the_turn_begins_and_ends():
    for began_at in (0.0, 0.3, 1.9):
        consumer = Progress(5_000)
        for at in range(100):  # a load of 20,000 every two seconds; seen ten times a second
            consumer.note(began_at + at / 10, 5_000 + 20_000 * int((began_at + at / 10 + 0.001) / 2))
        assert consumer.load_count in (3, 4) and consumer.rate == pytest.approx(10_000, rel=0.06)
    assert Progress(7).load_count == 0


def compared(*turns):
    """Lines of one size: events/s of new, old and old again, turn by turn."""
    return lines(figure for rates in turns for figure in against._figures(100, {
        name: Passage(rate, rate, 100, 0, {"cpu_us ingest": 1e6 / rate, "cpu_us load generator": 5.0})
        for name, rate in zip(("new", "old", "old again"), rates)}))


def test_what_is_more_than_the_slack_below_the_noise_is_not_held():
    held, = against.verdicts(compared((981, 1000, 1000), (970, 1000, 990), (2000, 1000, 1010)))
    assert (held.case, held.is_held, held.new_over_old, held.old_over_old) == ("batches of 100", True, 0.981, 1.0)
    assert (held.new_between, held.old_between) == ((0.97, 2.0), (0.99, 1.01))
    assert held.new_cpu == pytest.approx(1 / 0.981) and held.old_cpu == 1
    assert held.text.startswith("held: batches of 100: new over old 0.981 (0.970 to 2.000); at least 0.980 is wanted")
    slower, = against.verdicts(compared((979, 1000, 1000)))
    assert not slower.is_held and slower.text.startswith("NOT HELD: batches of 100: new over old 0.979")
    vague, = against.verdicts(compared((930, 1000, 940)))
    assert vague.is_held and "In batches of 100 the same code" in against.told([vague])
    assert "says little" not in against.told([held, slower])
    assert against.verdicts(lines([Figure("end-to-end", "batches of 100", "HTTP to COMMIT", "events/s", 5)])) == []


def test_a_slowdown_shows_in_cpu_of_all_programs_and_not_of_the_generator():
    found = {line.what: line.ratio for line in compared((500, 1000, 1000))}
    assert found["CPU, all programs, new"] == 2 and found["CPU, all programs, old again"] == 1


def test_where_a_median_is_gets_narrower_with_more_turns():
    values = [1 + number / 1000 for number in range(-15, 16)]
    assert against.between(values) == (0.995, 1.005)
    assert against.between(values[:4]) == (values[0], values[3]) and against.between([2.0]) == (2.0, 2.0)


def test_each_of_the_three_is_first_and_last_equally_often_and_every_other_round_goes_backwards():
    found = [list(against.orders("abc", number, 3)) for number in range(2)]
    assert found == [[["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]],
                     [["a", "c", "b"], ["b", "a", "c"], ["c", "b", "a"]]]


def test_a_checkout_runs_by_its_own_environment_where_it_has_one(tmp_path):
    with pytest.raises(BenchFailed, match="no ops/command.py"):
        checkout.found(tmp_path)
    for name in ("ops/command.py", "app/edge.py", "workers/consumer.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert checkout.found(tmp_path) == (tmp_path, sys.executable)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert checkout.found(tmp_path) == (tmp_path, str(python))
    with pytest.raises(BenchFailed, match="cannot be run"), checkout.found(tmp_path).running(tmp_path / "state"):
        pass


def test_the_quantile_is_a_value_that_so_many_do_not_exceed():
    ordered = list(range(1, 101))
    assert [quantile(ordered, share) for share in (0.0, 0.5, 0.99, 0.999, 1.0)] == [1, 50, 99, 100, 100]
    assert quantile([7], 0.5) == 7


def test_the_table_shows_the_ratio_first_and_nothing_where_there_is_no_limit():
    text = table.render(lines([
        Figure("end-to-end", "batches of 1", "HTTP to COMMIT", "events/s", 500, "bare COPY", 1000,
               {"cpu_us redis": 2.5}),
        Figure("end-to-end", "batches of 1", "alone", "events/s", 1234),
        Figure("replay", "WAL to stream", "replayed", "events/s", 10, "memory copy", 1000),
        Figure("compression", "batches of 1", "compress", "us", 0.25, "edge", 2.5, {"bytes WAL": 17}),
    ]))
    rows = [row.split() for row in text.splitlines()]
    assert ["0.50", "(0.50", "to", "0.50)", "HTTP", "to", "COMMIT", "500", "events/s", "1,000", "bare", "COPY"] in rows
    assert ["alone", "1,234", "events/s"] in rows
    assert next(row for row in rows if "replayed" in row)[0] == "0.0100"
    assert ["0.10", "(0.10", "to", "0.10)", "compress", "0.25", "us", "2.50", "edge"] in rows
    assert ["batches", "of", "1,", "compress", "17"] in rows
    assert "replay, 1 round\n" in text and "2.50" in text


def test_bodies_of_any_size_hold_the_same_events():
    pool = events(100)
    whole, parts, single = (Bodies(pool, size) for size in (100, 10, 1))
    assert (len(whole.bodies), len(parts.bodies), len(single.bodies)) == (1, 10, 100)
    assert whole.bodies == [b"[" + b",".join(pool) + b"]"] and single.bodies == pool
    assert len({batch.batch_id for batch in parts.fresh(25)}) == 25
    for batch in parts.fresh(11):
        assert batch.count == 10 and batch.payload.count(batch.batch_id.encode()) == 10
    transactions = list(parts.transactions(95, 4000))
    assert sum(one.count(b"\n") for one in transactions) == 100 and len(transactions) > 1


def test_each_batch_is_compressed_by_itself_and_costs_are_of_an_event():
    pool = events(200)
    for size in (1, 100):
        batches = Bodies(pool, size).encoded
        small = compression.packed(batches)
        assert [compression.zstd.decompress(one.payload) for one in small] == [one.payload for one in batches]
        found = compression.cost(batches)
        assert found.plain_bytes == sum(len(one.payload) for one in batches) / 200
        assert found.packed_bytes == sum(len(one.payload) for one in small) / 200
        assert 0 < found.unpack_us and 0 < found.pack_us


def test_fluent_bit_is_told_where_our_database_is():
    text = peer.config(2020, "postgresql://spillway:secret@127.0.0.1:5433/logs")
    told = dict(line.split() for line in text.splitlines() if line.startswith("    "))
    assert told["port"] == "5433" and "port         2020" in text
    assert {name: told[name] for name in ("host", "user", "password", "database", "table", "name")} == {
        "host": "127.0.0.1", "user": "spillway", "password": "secret", "database": "logs", "table": "fluent_bit",
        "name": "pgsql",
    }


def test_what_is_no_fluent_bit_is_refused(tmp_path):
    with pytest.raises(BenchFailed, match="none is not a program"):
        peer.found(tmp_path / "none")
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho nginx\n")
    other.chmod(0o755)
    assert peer.found(other) == other
    with pytest.raises(BenchFailed, match="nginx"):
        peer.version(other)
