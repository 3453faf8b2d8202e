"""The judge finds each broken promise that is planted, and no other."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loadtest.judge import Kind, Stored, Verdict, judge
from loadtest.receipt import Promise
from loadtest.verify import document, table


@dataclass(frozen=True)
class Row:
    """What the verifier's SQL sees of a row."""

    tag: str | None
    batch_id: str
    index: int
    is_altered: bool = False


def rows(tag: str, batch_id: str, count: int) -> list[Row]:
    return [Row(tag, batch_id, index) for index in range(count)]


def grouped(stored: Iterable[Row]) -> Iterator[Stored]:
    """Does what the SQL does."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in stored:
        groups[row.tag or "", row.batch_id].append(row)
    for (tag, batch_id), group in sorted(groups.items()):
        indexes = {row.index for row in group}
        altered = sum(row.is_altered for row in group)
        yield Stored(tag or None, batch_id, len(group), len(indexes), min(indexes), max(indexes), altered)


def faults(promise: Promise, stored: Iterable[Row]) -> list[tuple[Kind, int]]:
    verdict = judge({"tag": promise}, grouped(stored))
    assert verdict.is_clean == (not verdict.named)
    return [(fault.kind, fault.events) for fault in verdict.named]


ACCEPTED = Promise(3, False, ("a",))
KEYED = Promise(3, True, ("a", "a"), unknown_count=2)
UNKNOWN = Promise(3, False, unknown_count=2)
UNKNOWN_KEYED = Promise(3, True, unknown_count=2)
REJECTED = Promise(3, True)
A, B, C = rows("tag", "a", 3), rows("tag", "b", 3), rows("tag", "c", 3)


@pytest.mark.parametrize(("promise", "stored"), [
    (ACCEPTED, A), (Promise(3, False, ("a", "b"), unknown_count=1), A + B + C),
    (KEYED, A), (UNKNOWN, []), (UNKNOWN, A), (UNKNOWN, A + B), (UNKNOWN_KEYED, []), (UNKNOWN_KEYED, A), (REJECTED, []),
])
def test_kept_promises_are_clean(promise: Promise, stored: list[Row]) -> None:
    assert faults(promise, stored) == []


@pytest.mark.parametrize(("promise", "stored", "expected"), [
    pytest.param(ACCEPTED, [], [(Kind.MISSING, 3)], id="missing batch"),
    pytest.param(ACCEPTED, A[:2], [(Kind.MISSING, 1)], id="missing event at the end"),
    pytest.param(ACCEPTED, A[1:], [(Kind.MISSING, 1)], id="missing event at the start"),
    pytest.param(ACCEPTED, A + A[:1], [(Kind.DUPLICATE, 1)], id="duplicate row"),
    pytest.param(ACCEPTED, A[:2] + A[:1], [(Kind.MISSING, 1), (Kind.DUPLICATE, 1)], id="right count, wrong rows"),
    pytest.param(ACCEPTED, A + B, [(Kind.DUPLICATE, 3)], id="duplicate batch under another id"),
    pytest.param(ACCEPTED, A + [Row("tag", "a", 3)], [(Kind.PHANTOM, 1)], id="more events than were sent"),
    pytest.param(ACCEPTED, [Row("tag", "a", index, True) for index in (0, 1)] + A[2:], [(Kind.ALTERED, 2)], id="order"),
    pytest.param(ACCEPTED, B, [(Kind.MISSTATED, 3)], id="another batch id"),
    pytest.param(KEYED, B, [(Kind.MISSTATED, 3)], id="another batch id under a key"),
    pytest.param(KEYED, A + B, [(Kind.DUPLICATE, 3)], id="two sets under one key"),
    pytest.param(KEYED, [], [(Kind.MISSING, 3)], id="missing under a key"),
    pytest.param(Promise(3, True, ("a", "b")), A, [(Kind.MISSTATED, 3), (Kind.MISSING, 3)], id="two ids for one key"),
    pytest.param(Promise(3, False, ("a", "a")), A, [(Kind.MISSTATED, 3)], id="one id for two requests without a key"),
    pytest.param(replace(ACCEPTED, miscounted=2), A, [(Kind.MISSTATED, 3)], id="another count answered"),
    pytest.param(UNKNOWN, A[:2], [(Kind.PARTIAL, 1)], id="unknown, stored in part"),
    pytest.param(UNKNOWN, A + B[:1], [(Kind.PARTIAL, 2)], id="unknown, once whole and once in part"),
    pytest.param(UNKNOWN, A + B + C, [(Kind.DUPLICATE, 3)], id="unknown, more sets than attempts"),
    pytest.param(UNKNOWN_KEYED, A + B, [(Kind.DUPLICATE, 3)], id="unknown, two sets under one key"),
    pytest.param(REJECTED, A, [(Kind.PHANTOM, 3)], id="rejected, yet stored"),
    pytest.param(REJECTED, A[:1], [(Kind.PHANTOM, 1)], id="rejected, yet stored in part"),
])
def test_a_broken_promise_is_found(promise: Promise, stored: list[Row], expected: list[tuple[Kind, int]]) -> None:
    assert faults(promise, stored) == expected


@pytest.mark.parametrize("tag", ["never sent", None])
def test_rows_that_no_receipt_knows_are_phantoms(tag: str | None) -> None:
    verdict = judge({"tag": ACCEPTED}, grouped([*A, Row(tag, "x", 0)]))
    assert [(fault.kind, fault.tag, fault.batch_id, fault.events) for fault in verdict.named] == [
        (Kind.PHANTOM, tag, "x", 1)]


def test_only_what_may_still_arrive_is_waited_for() -> None:
    def is_final(promise: Promise, stored: list[Row]) -> bool:
        return judge({"tag": promise}, grouped(stored)).is_final

    assert not is_final(ACCEPTED, []) and not is_final(UNKNOWN, A[:1])
    assert is_final(ACCEPTED, A) and is_final(ACCEPTED, A + B) and is_final(ACCEPTED, A[:1] + B)


def test_outcomes_are_counted_and_at_most_twenty_faults_named() -> None:
    promises = {f"{number:02}": ACCEPTED for number in range(30)} | {"u": UNKNOWN_KEYED, "v": UNKNOWN, "w": REJECTED}
    verdict = judge(promises, grouped(rows("u", "x", 3)))
    assert {name: (tally.batches, tally.events) for name, tally in verdict.outcomes.items()} == {
        "accepted": (30, 90), "unknown": (2, 6), "rejected": (1, 3)}
    assert (verdict.recovered.batches, verdict.recovered.events) == (1, 3)
    missing = verdict.faults[Kind.MISSING]
    assert (missing.batches, missing.events, len(verdict.named)) == (30, 90, 20)


def test_the_verdict_reads_in_plain_words_and_as_json() -> None:
    assert table(Verdict()).endswith("clean: every promise was kept")
    broken = judge({"tag": ACCEPTED}, [])
    assert "missing                1             3" in table(broken)
    assert "missing: batch a, tag tag: all of 3 events" in table(broken)
    assert '"clean": false' in document(broken) and '"missing": {"batches": 1, "events": 3}' in document(broken)


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, Promise], list[Row]]:
    """Promises of every kind, and rows that keep them all."""
    promises, stored = {}, []
    for number in range(draw(st.integers(1, 5))):
        tag, count, is_keyed = f"tag{number}", draw(st.integers(1, 4)), draw(st.booleans())
        accepted, unknown = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        ids = tuple(f"{tag}-{0 if is_keyed else attempt}" for attempt in range(accepted))
        promises[tag] = Promise(count, is_keyed, ids, unknown)
        spare = min(unknown, 1 - min(accepted, 1)) if is_keyed else unknown
        extra = [f"{tag}-unknown{attempt}" for attempt in range(draw(st.integers(0, spare)))]
        stored += [row for batch_id in dict.fromkeys((*ids, *extra)) for row in rows(tag, batch_id, count)]
    return promises, stored


@given(histories())
def test_any_clean_history_is_clean(history: tuple[dict[str, Promise], list[Row]]) -> None:
    promises, stored = history
    assert judge(promises, grouped(stored)).is_clean


@given(histories(), st.data())
def test_any_change_of_a_row_is_found(history: tuple[dict[str, Promise], list[Row]], data: st.DataObject) -> None:
    promises, stored = history
    assume(stored)
    place = data.draw(st.integers(0, len(stored) - 1))
    row = stored[place]
    changes = [
        [row, row], [replace(row, is_altered=True)], [replace(row, index=row.index + data.draw(st.integers(1, 9)))],
        [replace(row, index=-1)], [replace(row, tag="strange")], [replace(row, tag=None)],
    ]
    # A whole set of one event may be gone, or stand under any id, where the outcome is unknown.
    if row.batch_id in promises[row.tag or ""].batch_ids or promises[row.tag or ""].count > 1:
        changes += [[], [replace(row, batch_id="strange")]]
    stored[place:place + 1] = data.draw(st.sampled_from(changes))
    assert not judge(promises, grouped(stored)).is_clean


@given(histories(), st.data())
def test_any_set_too_many_is_found(history: tuple[dict[str, Promise], list[Row]], data: st.DataObject) -> None:
    promises, stored = history
    tag = data.draw(st.sampled_from(sorted(promises)))
    promise, ids = promises[tag], {row.batch_id for row in stored if row.tag == tag}
    most = 1 if promise.is_keyed else len(promise.batch_ids) + promise.unknown_count
    most *= promise.outcome != "rejected"
    stored += [row for number in range(most - len(ids) + 1) for row in rows(tag, f"extra{number}", promise.count)]
    assert not judge(promises, grouped(stored)).is_clean
