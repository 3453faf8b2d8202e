"""Small requests that wait together share a batch; what must stand alone does, and no id names two things."""

from uuid import UUID

import pytest

from app import batch
from app.batch import CANARY, KEYLESS, Batch
from app.parcel import Queue
from app.ticket import Ticket

MINUTE = "2026-01-31T12:00:00.000000Z"
ALL = 1 << 30


def put(queue, text="m", count=1, key=None, received_at=MINUTE, service="s"):
    """Puts a request and returns its ticket."""
    batch_id = queue.next_id() if key is None else batch.id_of_key(key)
    rows = "".join(f"{received_at}\t{batch_id}\t{index}\t{text}\t{service}\tend\n" for index in range(count))
    ticket = Ticket(Batch(batch_id, count, KEYLESS, received_at, rows.encode()), 0)
    queue.put(ticket)
    return ticket


def taken(queue, max_bytes=ALL):
    """Takes a group, and returns for each parcel its batch and the requests that it answers."""
    return [(parcel.batch, parcel.tickets) for parcel in queue.take(max_bytes)]


def test_requests_that_wait_together_are_one_batch_with_the_rows_of_all_in_order():
    queue = Queue()
    tickets = [put(queue, str(number), count=number + 1) for number in range(3)]
    (one, answered), = taken(queue)
    assert answered == tickets and len(queue) == 0
    assert one.payload == b"".join(ticket.batch.payload for ticket in tickets)
    assert (one.count, one.parts, one.received_at) == (6, (1, 2, 3), MINUTE)
    assert {batch.whole_id(ticket.batch.batch_id) for ticket in tickets} == {one.batch_id}
    assert UUID(one.batch_id).version == 7


def test_a_request_that_waits_alone_is_stored_as_it_is():
    queue = Queue()
    ticket = put(queue)
    assert taken(queue) == [(ticket.batch, [ticket])]


@pytest.mark.parametrize("alone", [
    {"key": "k"}, {"service": CANARY}, {"received_at": "2026-01-31T12:01:00.000000Z"},
    {"count": 1000}, {"text": "x" * (1 << 18)},
])
def test_what_must_stand_alone_does_and_the_others_are_merged_all_the_same(alone):
    queue = Queue()
    first, odd, last = put(queue), put(queue, **alone), put(queue)
    (one, shared), (other, single) = taken(queue)
    assert (shared, single, other) == ([first, last], [odd], odd.batch)
    assert one.count == 2 and sum(one.parts) == 2


def test_a_parcel_that_is_full_is_followed_by_another():
    queue = Queue()
    tickets = [put(queue, count=100) for _ in range(25)]
    groups = taken(queue)
    assert [len(shared) for _, shared in groups] == [10, 10, 5]
    assert [ticket for _, shared in groups for ticket in shared] == tickets
    assert len({one.batch_id for one, _ in groups}) == 3


def test_what_comes_after_a_group_was_taken_is_another_batch():
    queue = Queue()
    ids = set()
    for _ in range(3):
        put(queue), put(queue)
        (one, _), = taken(queue)
        ids.add(one.batch_id)
    assert len(ids) == 3


def test_a_group_is_taken_up_to_its_bytes_and_what_is_left_goes_on_gathering():
    queue = Queue()
    large = [put(queue, text="x" * 1000, key=str(number)) for number in range(3)]
    first = put(queue)
    assert [shared for _, shared in taken(queue, 2500)] == [[large[0]], [large[1]]]
    last = put(queue)
    (_, third), (one, shared) = taken(queue)
    assert (third, shared, one.count) == ([large[2]], [first, last], 2)


def test_an_id_that_was_given_in_vain_is_nobodys():
    queue = Queue()
    first, vain, last = put(queue), queue.next_id(), put(queue)
    (one, _), = taken(queue)
    assert one.parts == (1, 0, 1)
    places = [batch.places_of_part(name, one.parts) for name in (first.batch.batch_id, vain, last.batch.batch_id)]
    assert list(map(list, places)) == [[0], [], [1]]


def test_an_id_whose_request_comes_after_those_of_later_ids_is_stored_alone_and_the_others_keep_their_places():
    queue = Queue()
    first, slow_id, last = put(queue, count=1), queue.next_id(), put(queue, count=2)
    slow = Ticket(Batch(slow_id, 3, KEYLESS, MINUTE, b"row\n" * 3), 0)
    queue.put(slow)
    (one, shared), (alone, _) = taken(queue)
    assert (shared, alone) == ([first, last], slow.batch)
    places = [batch.places_of_part(ticket.batch.batch_id, one.parts) for ticket in (first, slow, last)]
    assert list(map(list, places)) == [[0], [], [1, 2]]


def test_an_id_of_before_the_group_was_taken_is_stored_alone_under_itself():
    queue = Queue()
    put(queue)
    late_id = queue.next_id()
    taken(queue)
    first = put(queue)
    late = Ticket(Batch(late_id, 1, KEYLESS, MINUTE, b"row\n"), 0)
    queue.put(late)
    last = put(queue)
    (one, shared), (alone, _) = taken(queue)
    assert (shared, alone) == ([first, last], late.batch)
    assert alone.batch_id not in (one.batch_id, batch.whole_id(late_id))


def test_no_id_is_given_twice_and_none_is_a_merged_batch():
    queue = Queue()
    put(queue)
    ids = [queue.next_id() for _ in range(70_000)]
    assert len(set(ids)) == len(ids)
    assert all(batch.whole_id(one) != one for one in ids)


@pytest.mark.parametrize(("number", "places"), [(0, []), (1, [0]), (2, []), (3, [1, 2, 3]), (4, []), (0xFFFF, [])])
def test_a_request_has_its_events_of_a_merged_batch_and_no_others(number, places):
    name = f"01a21527-3e46-7b35-a742-16e3ba69{number:04x}"
    assert list(batch.places_of_part(name, (1, 0, 3))) == places
