"""Partitions made ahead while others load, read and hold locks, on a real PostgreSQL: nobody waits for it for long."""

import threading
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg2
import pytest

from app import stream
from app.batch import COLUMNS
from tests import journal
from tests.conftest import execute
from tests.journal import until
from tests.pooler import pooled
from workers import metric, partition, schema, transaction
from workers.keeper import Keeper
from workers.loader import Loader
from workers.partition import Result

MANY = 400_000  # rows, some 50 MiB: above what is looked through while others wait


@pytest.fixture
def tables(database_url):
    """The URL of a database with the tables, and no day but yesterday, today and tomorrow."""
    with closing(Loader(database_url, "consumer-00", 30)) as loader:
        loader.prepare()
    return database_url


@pytest.fixture
def keeper(tables):
    """A keeper in this process, of the three days to come."""
    with closing(Keeper(tables, 3)) as keeper:
        yield keeper


@pytest.fixture
def processes(redis_url, tables, tmp_path):
    """A factory of processes of ours that load into the tables; each has its log in `.log`."""
    started = []

    def start(module, **settings):
        log = tmp_path / module
        process = journal.start("-m", module, log=log, REDIS_URL=redis_url, DATABASE_URL=tables,
                                SPILLWAY_CONSUMER_NAME="consumer-00", SPILLWAY_PARTITION_DAYS="3", **settings)
        process.log = log
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
    assert [process.wait(timeout=30) for process in started] == [0] * len(started)


def day(offset):
    return datetime.now(UTC).date() + timedelta(days=offset)


def name(offset):
    return schema.partition_of(day(offset))


def rows_of(url, query):
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def partitions(url):
    return {found for found, in rows_of(url, "SELECT inhrelid::regclass::text FROM pg_inherits"
                                             " WHERE inhparent = 'log_events'::regclass")}


def guards(url):
    return {found for found, in rows_of(url, "SELECT conname::text FROM pg_constraint"
                                             f" WHERE starts_with(conname, '{schema.GUARD}')")}


def insert(url, moment, count=1):
    execute(url, "INSERT INTO log_events (ts, received_at, batch_id, batch_index, message, attributes)"
                 f" SELECT {moment}, '2001-01-01', gen_random_uuid(), 0, 'strange', '{{}}'"
                 f" FROM generate_series(1, {count}) AS n")


def fill(url):
    """Has a large DEFAULT, of a long time ago."""
    insert(url, "'2001-01-01'::timestamptz + n * interval '1 s'", MANY)


def at(one, offset):
    """Returns the batch with its events moved by days."""
    rows, place = [row.split(b"\t") for row in one.payload.split(b"\n")[:-1]], COLUMNS.index("ts")
    for row in rows:
        row[place] = f"{day(offset)}T00:00:00Z".encode()
    return msgspec.structs.replace(one, payload=b"".join(b"\t".join(row) + b"\n" for row in rows))


def is_stored(url, one):
    return rows_of(url, f"SELECT FROM log_batches WHERE batch_id = '{one.batch_id}'") != []


@contextmanager
def held(url, table="log_events_default"):
    """Somebody's transaction that has read a table and stays open."""
    with closing(psycopg2.connect(url, application_name="a long look")) as connection:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT FROM {table} LIMIT 1")
            yield


@contextmanager
def reader(url, query="SELECT count(*) FROM log_events WHERE ts > now() - interval '1 h'", lock_ms=300):
    """Somebody who reads all the time, and never waits for a lock longer than that; yields the rounds done so far."""
    rounds, failed, stop = [], [], threading.Event()

    def read():
        with closing(psycopg2.connect(url, options=f"-c lock_timeout={lock_ms}ms")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                while not stop.is_set():
                    try:
                        cursor.execute(query)
                        rounds.append(cursor.fetchall())
                    except psycopg2.Error as error:
                        failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        thread.join()
    assert failed == [] and rounds


def value(gauge):
    found, = (sample.value for family in gauge.collect() for sample in family.samples)
    return found


def failures(cause):
    return metric.failed_upkeep.labels(cause)._value.get()


def test_the_tables_come_with_the_days_around_today_and_the_keeper_makes_the_others(tables, keeper):
    assert partitions(tables) == {"log_events_default", *map(name, (-1, 0, 1))}
    assert keeper.step() == {day(2): Result.MADE, day(3): Result.MADE}
    assert partitions(tables) == {"log_events_default", *map(name, range(-1, 4))}
    assert keeper.step() == {} and guards(tables) == set()
    assert datetime.fromtimestamp(value(metric.partitions_until), UTC).date() == day(4)


def test_a_partition_of_the_keeper_is_as_one_that_came_with_the_tables(tables, keeper):
    keeper.step()
    looks = [rows_of(tables, "SELECT attname, atttypid, attnotnull, col_description(attrelid, attnum) FROM pg_attribute"
                             f" WHERE attrelid = '{one}'::regclass AND attnum > 0 ORDER BY attnum")
             for one in (name(1), name(2))]
    assert looks[0] == looks[1]
    indexes = [rows_of(tables, f"SELECT replace(indexdef, '{one}', '') FROM pg_indexes WHERE tablename = '{one}'"
                               " ORDER BY 1") for one in (name(1), name(2))]
    assert indexes[0] == indexes[1] and len(indexes[0]) == 2


def test_a_long_look_at_default_keeps_the_partition_waiting_and_neither_loads_nor_other_readers(
    client, processes, tables, keeper
):
    keeper.step()
    execute(tables, f"DROP TABLE {name(3)}")
    with held(tables):
        consumer, maker = processes("workers.consumer", SPILLWAY_SINK_RETRIES="0"), processes("workers.keeper")
        until(lambda: "partition_refused" in maker.log.read_text(), "a try that has to wait")
        assert "a long look" in maker.log.read_text()
        with reader(tables) as rounds:
            batches = [journal.make_batch(f"batch {number}") for number in range(10)]
            for one in batches:
                journal.append(client, one)
                assert keeper.step() in ({day(3): Result.LOCKED}, {day(3): Result.BUSY})
                until(lambda: is_stored(tables, one), "the row", 10)
                before = len(rounds)
                until(lambda: len(rounds) > before, "the reader to come through", 10)
        assert name(3) not in partitions(tables)
    until(lambda: name(3) in partitions(tables), "the partition to be made then")
    until(lambda: "partition_made" in maker.log.read_text(), "the keeper to say so")
    assert client.xlen(stream.DEAD_LETTERS) == 0 and "load_failed" not in consumer.log.read_text()
    assert maker.log.read_text().count("partition_refused") == 1


def test_a_default_of_many_rows_is_looked_through_beside_loads_and_not_under_the_lock(tables, keeper):
    fill(tables)
    with closing(psycopg2.connect(tables)) as connection:
        with transaction.autocommit(connection), connection.cursor() as cursor:
            cursor.execute("SET client_min_messages = debug1")
        with reader(tables, "SELECT FROM log_events_default LIMIT 1"):
            assert partition.make(connection, day(2)) is Result.MADE
        said = "".join(connection.notices)
    assert 'default partition "log_events_default" is implied by existing constraints' in said
    assert 'verifying table "log_events_default"' in said.partition("is implied")[0]  # by VALIDATE
    assert 'verifying table "log_events_default"' not in said.partition("is implied")[2]
    assert guards(tables) == set() and name(2) in partitions(tables)


def test_loads_go_on_while_partitions_are_made_beside_a_default_of_many_rows(client, processes, tables):
    fill(tables)
    consumer = processes("workers.consumer", SPILLWAY_SINK_TIMEOUT_S="1", SPILLWAY_CLAIM_IDLE_S="2",
                         SPILLWAY_SINK_RETRIES="0")
    processes("workers.keeper")
    for number in range(12):
        one = at(journal.make_batch(), number % 3 - 1)
        journal.append(client, one)
        until(lambda: is_stored(tables, one), "its rows", 10)
    until(lambda: {name(2), name(3)} <= partitions(tables), "the partitions")
    until(lambda: guards(tables) == set(), "the guards to go")
    assert client.xlen(stream.DEAD_LETTERS) == 0
    assert "load_failed" not in consumer.log.read_text()


def test_an_autovacuum_of_default_gives_way(tables, keeper):
    """It would not to a lock that is waited for more briefly than `deadlock_timeout`."""
    superuser = tables.replace("spillway:", "postgres:", 1)
    execute(tables, "ALTER TABLE log_events_default SET (autovacuum_vacuum_insert_threshold = 1,"
                    " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)")
    execute(superuser, "ALTER SYSTEM SET autovacuum_naptime = 1")
    try:
        execute(superuser, "SELECT pg_reload_conf()")
        insert(tables, "'2001-01-01'::timestamptz", 50_000)
        query = "SELECT FROM pg_stat_activity WHERE query LIKE 'autovacuum: %log_events_default%'"
        until(lambda: rows_of(superuser, query), "an autovacuum")
        with reader(tables):
            assert keeper.step() == {day(2): Result.MADE, day(3): Result.MADE}
    finally:
        execute(tables, "ALTER TABLE log_events_default SET (autovacuum_enabled = false)")  # else it is long in ending
        execute(superuser, "ALTER SYSTEM RESET autovacuum_naptime")
        execute(superuser, "SELECT pg_reload_conf()")


def test_today_is_not_guarded_where_default_is_large_as_its_rows_are_coming(tables, keeper, caplog):
    execute(tables, f"DROP TABLE {name(0)}")
    fill(tables)
    before = failures("large")
    assert keeper.step() == {day(0): Result.LARGE, day(2): Result.MADE, day(3): Result.MADE}
    assert guards(tables) == set() and failures("large") == before + 1
    insert(tables, "now()")
    assert keeper.step() == {day(0): Result.ROWS}
    assert [record.message.split()[0] for record in caplog.records].count("partition_refused") == 2


def test_a_day_whose_rows_lie_in_default_waits_is_said_once_and_keeps_no_other_from_being_made(
    tables, keeper, caplog
):
    insert(tables, f"'{day(2)} 12:00Z'")
    before = failures("rows")
    assert keeper.step() == {day(2): Result.ROWS, day(3): Result.MADE}
    assert keeper.step() == {day(2): Result.ROWS}
    assert caplog.text.count("partition_refused") == 1 and "rows in default" in caplog.text
    assert failures("rows") == before + 2 and value(metric.refused_partitions) == 1
    assert datetime.fromtimestamp(value(metric.partitions_until), UTC).date() == day(2)
    execute(tables, "DELETE FROM log_events_default")
    assert keeper.step() == {day(2): Result.MADE}
    assert value(metric.refused_partitions) == 0


def test_a_row_that_comes_before_the_look_is_over_takes_the_guard_back(tables, keeper, monkeypatch):
    """The look finds nothing, and then there is one."""
    fill(tables)
    insert(tables, f"'{day(2)} 12:00Z'")
    monkeypatch.setattr(partition, "_has_rows", lambda cursor, words: False)
    assert keeper.step() == {day(2): Result.ROWS, day(3): Result.MADE}
    assert guards(tables) == set()


def test_ten_keepers_at_once_make_each_partition_once_and_fail_at_nothing(tables):
    results, barrier = [], threading.Barrier(10)

    def keep():
        with closing(Keeper(tables, 5)) as one:
            barrier.wait()
            for _ in range(200):
                found = one.step()
                results.append(set(found.values()))
                if not found:
                    break

    threads = [threading.Thread(target=keep) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert partitions(tables) == {"log_events_default", *map(name, range(-1, 6))}
    assert set().union(*results) <= {Result.MADE, Result.BUSY} and results.count(set()) == 10


def test_a_keeper_whose_role_may_make_no_table_says_so_once_and_loads_go_on(tables, redis_url, caplog):
    url = tables.replace("spillway:", "postgres:", 1)
    execute(url, "CREATE ROLE poor LOGIN PASSWORD 'poor'")
    try:
        execute(tables, "GRANT ALL ON ALL TABLES IN SCHEMA public TO poor")
        poor = f"postgresql://poor:poor@{tables.rpartition('@')[2]}"
        with closing(Keeper(poor, 3)) as keeper:
            for _ in range(2):
                assert keeper.step() == {day(2): Result.FORBIDDEN, day(3): Result.FORBIDDEN}
        assert caplog.text.count("may not create tables") == 2, "once a day"
        execute(tables, f"DROP TABLE {name(0)}")
        one = journal.make_batch()
        with closing(Loader(poor, "consumer-00", 30)) as loader:
            loader.load([one], ["1-1"], lambda events: None)
        assert one.batch_id in journal.stored(tables)
    finally:
        execute(url, "DROP OWNED BY poor; DROP ROLE poor")


@pytest.mark.parametrize("is_empty", [True, False], ids=["empty", "with rows"])
def test_a_table_with_the_name_of_a_partition_is_attached_if_it_is_empty_and_else_left_alone(
    tables, keeper, is_empty
):
    execute(tables, f"CREATE TABLE {name(2)} (LIKE log_events)")
    if not is_empty:
        execute(tables, f"INSERT INTO {name(2)} SELECT '{day(2)}', now(), gen_random_uuid(), 0, '', 0, '', '', '', '',"
                        " '', '{}'")
    assert keeper.step() == {day(2): Result.MADE if is_empty else Result.OCCUPIED, day(3): Result.MADE}
    assert (name(2) in partitions(tables)) == is_empty


def test_a_guard_of_a_day_that_is_due_no_more_is_dropped_as_soon_as_its_lock_is_to_be_had(tables, keeper):
    keeper.step()
    for offset in (2, 9):
        execute(tables, f"ALTER TABLE log_events_default ADD CONSTRAINT {schema.GUARD}{day(offset):%Y%m%d}"
                        " CHECK (ts < '2100-01-01')")
    with held(tables):
        assert keeper.step() == {day(2): Result.LOCKED, day(9): Result.LOCKED}
    assert keeper.step() == {} and guards(tables) == set()


def test_what_a_guard_refuses_waits_alone_until_the_partition_is_there_and_is_no_dead_letter(
    client, processes, tables
):
    execute(tables, f"ALTER TABLE log_events_default ADD CONSTRAINT {schema.GUARD}{day(2):%Y%m%d}"
                    f" CHECK (ts < '{day(2)} 00:00Z' OR ts >= '{day(3)} 00:00Z') NOT VALID")
    consumer = processes("workers.consumer", SPILLWAY_SINK_RETRIES="0")
    early, *later = at(journal.make_batch(), 2), *(journal.make_batch() for _ in range(20))
    journal.append(client, *later[:10], early)
    until(lambda: "23514" in consumer.log.read_text(), "the load to be refused")
    journal.append(client, *later[10:])
    until(lambda: all(is_stored(tables, one) for one in later), "the others to be stored meanwhile")
    processes("workers.keeper")
    until(lambda: client.xlen(stream.STREAM) == 0, "all to be stored")
    assert journal.stored(tables) == {one.batch_id: journal.messages(one) for one in (early, *later)}
    assert client.xlen(stream.DEAD_LETTERS) == 0
    assert {place for place, in rows_of(tables, "SELECT tableoid::regclass::text FROM log_events")} == {
        name(0), name(2),
    }


def test_behind_a_pooler_by_transaction_a_keeper_waits_as_briefly_and_leaves_nothing_to_the_next_client(
    tables, short_dir
):
    fill(tables)
    directory = short_dir / "pooler"
    directory.mkdir()
    with pooled(directory, tables, "ignore_startup_parameters = options,extra_float_digits") as url:
        with closing(Keeper(url, 3)) as keeper:
            with held(tables), reader(tables, "SELECT FROM log_events_default LIMIT 1"):
                assert keeper.step() == {day(2): Result.LOCKED}
            assert keeper.step() == {day(2): Result.MADE, day(3): Result.MADE}
        for limit in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            assert rows_of(url, f"SHOW {limit}") == [("0",)]
    assert guards(tables) == set()


def test_a_keeper_waits_for_postgresql_and_goes_on_when_it_is_back(processes, postgres_server, tables):
    maker = processes("workers.keeper")
    until(lambda: {name(2), name(3)} <= partitions(tables), "the partitions")
    execute(tables, f"DROP TABLE {name(3)}")
    postgres_server.stop()
    maker.terminate()
    assert maker.wait(30) == 0
    maker = processes("workers.keeper")
    until(lambda: "keeper_waiting" in maker.log.read_text(), "it to say so")
    postgres_server.start()
    until(lambda: name(3) in partitions(tables), "the partition")
    assert maker.log.read_text().count("keeper_waiting") == 1 and "keeper_resumed" in maker.log.read_text()


def test_a_keeper_stops_when_it_is_told_though_postgresql_does_not_answer(processes, postgres_server, tables):
    with held(tables):
        maker = processes("workers.keeper")
        until(lambda: "partition_refused" in maker.log.read_text(), "a try that has to wait")
        postgres_server.pause()
        tries_at = time.monotonic() + 6
        until(lambda: time.monotonic() > tries_at, "it to try again")
        maker.terminate()
        assert maker.wait(30) == 0
        postgres_server.resume()


def test_a_keeper_without_its_settings_says_which_and_exits_with_78():
    process = journal.start("-m", "workers.keeper", DATABASE_URL="")
    assert process.wait(timeout=30) == 78


def test_the_first_connection_makes_the_partition_of_today_before_rows_of_today_lie_in_default(tables):
    """As after weeks in which nothing ran."""
    execute(tables, f"DROP TABLE {name(0)}")
    one = journal.make_batch()
    with closing(Loader(tables, "consumer-00", 30)) as loader:
        loader.load([one], ["1-1"], lambda events: None)
    assert {place for place, in rows_of(tables, "SELECT tableoid::regclass::text FROM log_events")} == {name(0)}


def test_the_first_connection_loads_all_the_same_where_the_partition_of_today_cannot_be_made(tables, caplog):
    execute(tables, f"DROP TABLE {name(0)}")
    one = journal.make_batch()
    with held(tables), closing(Loader(tables, "consumer-00", 30)) as loader:
        loader.load([one], ["1-1"], lambda events: None)
    assert f"partition_refused day={day(0)}" in caplog.text
    assert {place for place, in rows_of(tables, "SELECT tableoid::regclass::text FROM log_events")} == {
        "log_events_default"
    }


def test_a_connection_to_tables_that_lack_nothing_is_prepared_by_one_statement(tables):
    with closing(psycopg2.connect(tables)) as connection:
        with held(tables, "log_events, log_batches"):
            assert schema.ensure(connection)
        assert not connection.autocommit


def test_a_column_that_an_older_version_lacks_waits_for_a_long_look_and_keeps_nobody_waiting(
    client, processes, tables
):
    execute(tables, "ALTER TABLE log_batches DROP COLUMN part_counts")
    one = journal.make_batch()
    with held(tables, "log_batches"):
        consumer = processes("workers.consumer", SPILLWAY_SINK_RETRIES="0")
        journal.append(client, one)
        with reader(tables, "SELECT count(*) FROM log_batches") as rounds:
            until(lambda: "55P03" in consumer.log.read_text(), "a try that had to wait")
            before = len(rounds)
            until(lambda: len(rounds) > before + 10, "the reader to come through")
        with closing(psycopg2.connect(tables)) as connection, pytest.raises(psycopg2.errors.LockNotAvailable):
            schema.ensure(connection)
        assert client.xlen(stream.STREAM) == 1 and client.xlen(stream.DEAD_LETTERS) == 0
    until(lambda: one.batch_id in journal.stored(tables), "the batch to be stored")
    assert client.xlen(stream.DEAD_LETTERS) == 0
