"""Batch ids, by time and chance or by the client's key; a batch as a record, and as a person reads it."""

import json
import threading
import time
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import batch, form
from tests.sample import steady


def test_an_id_is_a_uuid_of_version_7_with_the_time_in_front():
    before_ms = time.time_ns() // 1_000_000
    made = UUID(batch.new_id())
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert before_ms <= made.int >> 80 <= time.time_ns() // 1_000_000


def test_later_ids_sort_later():
    first = batch.new_id()
    begun_at = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 == begun_at:
        pass
    assert first < batch.new_id()


def test_ids_differ_and_chance_reaches_all_of_their_bits():
    ids = [UUID(batch.new_id()).int for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    always_set, ever_set = ids[0], 0
    for one in ids:
        always_set, ever_set = always_set & one, ever_set | one
    fixed = 0xF << 76 | 0b11 << 62 | 0xFFFF  # the first of a series each
    assert ~(ever_set ^ always_set) & ((1 << 80) - 1) == fixed


def test_ids_of_threads_differ():
    found = []
    threads = [threading.Thread(target=lambda: found.extend(batch.new_id() for _ in range(500))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 2000


@steady
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255))
def test_a_key_has_one_id_for_ever(key):
    assert batch.id_of_key(key) == batch.id_of_key(key)
    assert batch.id_of_key(key) != batch.id_of_key(f"{key} ")
    assert UUID(batch.id_of_key(key)).version == 5


def test_the_id_of_a_key_does_not_change_between_releases():
    # What is in the ledger under a key has to be found by the next release, too.
    assert batch.id_of_key("order-1") == "18107e32-e830-5e6b-97e9-cb36321399dd"


def test_columns_are_those_of_the_payload_s_format():
    assert batch.FORMAT == 1
    assert batch.COLUMNS == (
        "received_at", "batch_id", "batch_index", "ts", "level", "severity", "service", "host", "message", "trace_id",
        "span_id", "attributes",
    )


def test_a_batch_is_read_back_as_a_person_looks_at_it():
    text = "tab\t line\n return\r back\\slash \\N \\. \\t"
    body = json.dumps([{"message": text, "service": "s", "attributes": {"k": text}}, {"message": ""}]).encode()
    one = form.to_batch(form.FORMS["application/json"], body, [], "id", 0, form.Limits(10, 1000))
    first, second = batch.events(one)
    assert (first["message"], first["service"], first["batch_index"]) == (text, "s", "0")
    assert json.loads(first["attributes"]) == {"k": text}
    assert (second["message"], second["service"]) == ("", None)


def test_a_record_is_the_batch_again():
    one = batch.Batch("id", 2, "ab", "now", b"\x00\xff\n")
    assert batch.from_record(batch.to_record(one)) == one
    with pytest.raises(ValueError):
        batch.from_record(b"something else")
