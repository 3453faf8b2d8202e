"""The conservation equation: each kind of loss and doubling is planted in a minute that balances, and must be found."""

import msgspec
import pytest

from app import count
from ops.balance import Bucket, gaps

# Some came twice; some were buried, and of these some were replayed and some purged; some are on their way. Of what was
# loaded three are dead, one of them purged.
WHOLE = Bucket(
    counts={
        count.ADDED: 116, count.LOADED: 70, count.RETURNED: 1, count.DUPLICATE: 10, count.BURIED: 15,
        count.BURIED_LONE: 4, count.REPLAYED: 6, count.PURGED: 3, count.PURGED_LONE: 1,
    },
    in_stream=20, letters=7, letters_lone=2, ledger=70, rows=67, dead=3, is_read=True,
)


def changed(**changes):
    counts = {kind: WHOLE.of(kind) + changes.pop(kind, 0) for kind in count.KINDS}
    numbers = {name: getattr(WHOLE, name) + amount for name, amount in changes.items()}
    return msgspec.structs.replace(WHOLE, counts=counts, **numbers)


def found(bucket):
    return {gap.check: gap.events for gap in gaps(bucket)}


def test_a_minute_that_balances_has_no_gap():
    assert found(WHOLE) == {}
    assert found(Bucket()) == {} == found(Bucket(is_read=True))


@pytest.mark.parametrize("change, expected", [
    ({"in_stream": -3}, {"stream": 3}),  # trimmed
    ({"in_stream": 3}, {"stream": -3}),  # written by hand
    ({count.ADDED: 5}, {"stream": 5}),
    ({count.LOADED: -70}, {"stream": 70, "ledger": -35}),  # the counts were lost: more than may be on its way
    ({count.DUPLICATE: -1}, {"stream": 1}),
    ({"ledger": -7}, {"ledger": 7, "rows": -7}),  # a ledger row deleted
    ({"ledger": -7, "rows": -7}, {"ledger": 7}),  # PostgreSQL has lost a commit
    ({"ledger": 36, "rows": 36}, {"ledger": -1}),
    ({"rows": -1}, {"rows": 1}),
    ({"rows": 67}, {"rows": -67}),  # loaded twice
    ({"letters": -2}, {"letters": 2}),
    ({"letters": 2}, {"letters": -2}),
    ({count.PURGED: -3}, {"letters": 3}),
    ({"letters_lone": -1}, {"letters": 1, "dead": 1}),
    ({"dead": 1, "rows": -1}, {"dead": 1}),  # an event acknowledged as dead that has no letter
    ({"dead": -1}, {"rows": 1}),
])
def test_what_is_lost_or_doubled_is_found_with_its_number(change, expected):
    assert found(changed(**change)) == expected


@pytest.mark.parametrize("change", [
    {"ledger": 20, "rows": 20},  # committed, not released yet
    {"ledger": 35, "rows": 35},  # and what was buried had been committed, too
    {"ledger_old": 9, "rows": 9},  # by a version that counted nothing
    {count.ADDED: 5, "in_stream_lone": 5},
    {"letters_lone": 1, count.BURIED_LONE: 1},  # a letter whose load was rolled back
])
def test_what_is_on_its_way_is_no_gap(change):
    assert found(changed(**change)) == {}


def test_of_a_minute_that_postgresql_was_not_asked_about_redis_alone_is_judged():
    bucket = msgspec.structs.replace(changed(in_stream=-1), is_read=False, ledger=0, rows=0, dead=0)
    assert found(bucket) == {"stream": 1}


def test_of_a_minute_whose_counts_were_taken_away_what_came_since_and_the_rows_are_judged():
    late = Bucket(counts={count.ADDED: 3, count.LOADED: 3}, ledger=103, rows=103, is_read=True, is_whole=False)
    assert found(late) == {}
    late.rows = 100
    assert found(late) == {"rows": 3}


def test_a_gap_says_its_numbers_and_what_they_mean():
    gap, = gaps(changed(in_stream=-20))
    assert "added 116" in gap.text and "in the stream 0" in gap.text and "deleted or trimmed by hand" in gap.text
