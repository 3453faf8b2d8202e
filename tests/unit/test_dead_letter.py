"""The dead letter: what is read of it, whoever wrote it, and what of it goes back into the stream."""

import msgspec
import pytest

from app import batch, dead_letter, stream
from app.dead_letter import Death
from tests import journal
from tests.letter import death, lone, make_service_batch

REFERENCE = (journal.ROOT / "ops/REFERENCE.md").read_text()
FOREIGN = "0f0f0f0f-0000-4000-8000-000000000000"


def fields_of(*parts):
    """Returns names and values in turn as Redis gives them back."""
    values = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return dict(zip(values[::2], values[1::2]))


def letter_of(one, reason=dead_letter.SINK, letter_id=b"1769860800123-0", **changes):
    fields = fields_of(*stream.fields_of(one), *death(reason).fields())
    return dead_letter.letter_of(letter_id, fields | {name.encode(): value for name, value in changes.items()})


def test_a_letter_of_a_batch_is_read_back_whole():
    one = journal.make_batch(count=2)
    letter = letter_of(one)
    assert (letter.batch, letter.death, letter.index, letter.count, letter.event_name) == (one, death(), None, 2, b"")
    document = letter.document()
    assert [event["message"] for event in document.pop("events")] == ["event 0", "event 1"]
    assert document == letter.summary() == {
        "letter_id": "1769860800123-0", "made_at": "2026-01-31T12:00:00.123000Z", **death()._asdict(),
        "batch_id": one.batch_id, "event_index": None, "count": 2, "received_at": one.received_at,
    }


def test_a_letter_of_one_event_says_which_of_its_batch_it_is():
    one = journal.make_batch()
    letter = letter_of(lone(one, 1), dead_letter.BAD_EVENT)
    assert (letter.index, letter.count) == (1, 1)
    assert letter.event_name.decode() == dead_letter.event_name(one.batch_id, 1)
    assert [event["message"] for event in letter.events()] == ["event 1"]


def test_a_detail_is_cut_when_it_is_written_and_when_it_was_written_by_another():
    assert dict(zip(*[iter(death(detail="é" * 5000).fields())] * 2))["detail"] == "é" * 1000
    letter = letter_of(journal.make_batch(), detail=("é" * 5000).encode(), reason=b"x" * 5000)
    assert (letter.death.detail, letter.death.reason) == ("é" * 1000, "x" * 1000)


@pytest.mark.parametrize("attempts", [b"", b"-1", b"many", "٣".encode(), b"9" * 5000, b"1e3", b"\xff"])
def test_attempts_that_are_no_number_count_as_none(attempts):
    assert letter_of(journal.make_batch(), attempts=attempts).death.attempts == 0


@pytest.mark.parametrize("fields", [
    {}, {b"hello": b"world"}, {b"\xff\x00": b"\xfe\x1b[31m"}, {b"reason": b"\xff", b"detail": b"\x00"},
    fields_of("batch_id", FOREIGN, "event_index", "no number"), fields_of("event_index", 1),
])
def test_what_is_no_batch_is_shown_with_its_fields_and_never_replayed(fields):
    letter = dead_letter.letter_of(b"1-1", fields)
    document = letter.document()
    assert len(document["fields"]) == len(fields) and "events" not in document
    assert msgspec.json.decode(msgspec.json.encode(document)) == document
    assert (letter.batch, letter.count, letter.index, letter.is_replayable) == (None, 0, None, False)
    assert dead_letter.to_replay(letter) is None and not letter.has_service("web")


@pytest.mark.parametrize("changes", [
    {"version": b"2"}, {"payload": b"no row\n"}, {"payload": b"\xff\n"}, {"payload": b""},
])
def test_a_payload_that_cannot_be_decoded_is_shown_as_it_is(changes):
    letter = letter_of(journal.make_batch(), **changes)
    (name, value), = changes.items()
    assert letter.document()["fields"][name] == value.decode(errors="backslashreplace")
    assert not letter.has_service("web")


@pytest.mark.parametrize("letter_id", [b"0-1", b"18446744073709551615-18446744073709551615", b"7258118400000-0"])
def test_an_id_that_was_made_up_does_not_harm(letter_id):
    letter = letter_of(journal.make_batch(), letter_id=letter_id)
    assert letter.made_at == ("1970-01-01T00:00:00.000000Z" if letter_id == b"0-1" else "")
    assert letter.document()["letter_id"] == letter_id.decode()


@pytest.mark.parametrize("service", ["web", "a\tb", "back\\slash", "line\nbreak", "中文", "\\N", ""])
def test_a_service_is_found_whatever_its_characters(service):
    letter = letter_of(make_service_batch("other", service))
    assert letter.has_service(service)
    assert not letter.has_service("m") and not letter.has_service("we\ud800b") and not letter.has_service("N\\")


def test_an_event_without_a_service_has_none():
    assert not letter_of(make_service_batch(None, message="web")).has_service("web")


@pytest.mark.parametrize("reason", [dead_letter.SINK, dead_letter.BAD_BATCH, dead_letter.KILLS, "unheard of"])
def test_a_batch_is_replayed_as_it_was(reason):
    one = journal.make_batch()
    assert dead_letter.to_replay(letter_of(one, reason)) == one


def test_one_event_is_replayed_as_one_event():
    event = lone(journal.make_batch(), 2)
    assert dead_letter.to_replay(letter_of(event, dead_letter.BAD_EVENT)) == event


def test_what_somebody_else_wrote_is_not_replayed_even_if_it_looks_like_a_batch():
    letter = letter_of(journal.make_batch(), dead_letter.NOT_AN_ENTRY)
    assert dead_letter.to_replay(letter) is None and not letter.is_replayable


def test_a_conflict_is_replayed_under_an_id_that_follows_from_its_key_and_body():
    first, second = journal.make_batch("first", key="k"), journal.make_batch(f"\t{FOREIGN}\t", key="k")
    again = dead_letter.to_replay(letter_of(second, dead_letter.CONFLICT))
    assert again == dead_letter.to_replay(letter_of(second, dead_letter.CONFLICT))
    assert again.batch_id != dead_letter.to_replay(letter_of(first, dead_letter.CONFLICT)).batch_id != second.batch_id
    assert again.count == second.count and again.sha256 == second.sha256
    rows = list(batch.events(again))
    assert {row.pop("batch_id") for row in rows} == {again.batch_id}
    assert rows == [{name: value for name, value in row.items() if name != "batch_id"} for row in batch.events(second)]


def test_a_message_that_names_the_id_of_its_own_batch_keeps_it_when_its_batch_is_renamed():
    key_id = batch.id_of_key("k")
    one = journal.make_batch(f"\t{key_id}\t", key="k")
    again = dead_letter.to_replay(letter_of(one, dead_letter.CONFLICT))
    assert [row["message"] for row in batch.events(again)] == journal.messages(one, f"\t{key_id}\t")


def test_letters_have_places_in_the_order_of_their_ids():
    assert dead_letter.place_of("9-10") < dead_letter.place_of("10-2") < dead_letter.place_of("10-11")


def test_every_field_of_a_death_stands_in_a_letter():
    assert set(Death._fields) <= {name.decode() for name in letter_of(journal.make_batch()).fields}


def test_the_reference_tells_every_field_and_every_reason():
    section = REFERENCE[REFERENCE.index("\n## Dead letters"):REFERENCE.index("\n## Admin listener")]
    documented = {name for row in section.splitlines() if row.startswith("| `") for name in row.split("`")[1:-1:2]}
    assert {*Death._fields, *dead_letter.REASONS} <= documented
