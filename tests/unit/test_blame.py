"""The table of blame: every class of SQLSTATE and every exception of the driver has been decided upon."""

import psycopg2
import pytest
from psycopg2 import errorcodes

from workers.blame import CLASSES, TYPES, Blame, blame, translated
from workers.errors import Locked, Misconfigured, Poison, Unavailable
from workers.schema import GUARD
from workers.watchdog import Overdue

STATES = {name: code for name, code in vars(errorcodes).items() if isinstance(code, str) and len(code) == 5}


class Error(psycopg2.DatabaseError):
    """One with a SQLSTATE, as the server's have, and what it says of its constraint."""

    def __init__(self, pgcode, text="", **diag):
        super().__init__(text)
        self._pgcode, self._diag = pgcode, diag

    @property
    def pgcode(self):
        return self._pgcode

    @property
    def diag(self):
        named = {"constraint_name": None, "table_name": None, **self._diag}
        return type("Diag", (), named)


def test_every_class_of_sqlstate_that_the_driver_knows_is_decided_upon():
    known = {code for name, code in vars(errorcodes).items() if name.startswith("CLASS_")}
    assert known == set(CLASSES)


def test_every_exception_that_the_driver_has_is_decided_upon_without_a_sqlstate():
    kinds = [kind for kind in vars(psycopg2).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {kind.__name__ for kind in kinds} == {
        "DataError", "DatabaseError", "Error", "IntegrityError", "InterfaceError", "InternalError", "NotSupportedError",
        "OperationalError", "ProgrammingError", "Warning",
    }
    decided = {kind.__name__: blame(kind("")) for kind in kinds}
    assert {name for name, found in decided.items() if found is Blame.DATA} == {"DataError"}
    assert {name for name, found in decided.items() if found is Blame.OPERATOR} == {"ProgrammingError"}
    assert blame(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates")) is Blame.DATA
    assert set(TYPES.values()) <= set(Blame)


@pytest.mark.parametrize("code", sorted(set(STATES.values())))
def test_every_sqlstate_that_the_driver_names_gets_an_answer_and_only_bad_data_is_the_datas_fault(code):
    found = blame(Error(code, constraint_name="a_check"))
    assert (found is Blame.DATA) == (code[:2] in ("22", "23", "54") and code != "54011")
    assert isinstance(translated(Error(code, constraint_name="c")), Poison) == (found is Blame.DATA)


@pytest.mark.parametrize("code, diag, expected", [
    ("22P02", {}, Blame.DATA), ("54001", {}, Blame.DATA), ("23514", {"constraint_name": "level_known"}, Blame.DATA),
    ("23514", {}, Blame.OPERATOR),  # no partition for the row
    ("23514", {"constraint_name": f"{GUARD}20260131"}, Blame.LOCK),  # its partition is being made
    ("23505", {"table_name": "log_batches", "constraint_name": "log_batches_pkey"}, Blame.DONE),
    ("23505", {"table_name": "log_events_20260101", "constraint_name": "own"}, Blame.DATA),
    ("08006", {}, Blame.SERVER), ("P0001", {}, Blame.DOUBT),
    ("25006", {}, Blame.SERVER), ("40P01", {}, Blame.LOCK), ("53100", {}, Blame.SERVER), ("55P03", {}, Blame.LOCK),
    ("57P01", {}, Blame.SERVER), ("57014", {}, Blame.DOUBT), ("25P03", {}, Blame.SERVER), ("XX000", {}, Blame.DOUBT),
    ("42P01", {}, Blame.OPERATOR), ("42703", {}, Blame.OPERATOR), ("42501", {}, Blame.OPERATOR),
    ("3F000", {}, Blame.OPERATOR), ("28P01", {}, Blame.OPERATOR), ("0A000", {}, Blame.OPERATOR),
    ("42P07", {}, Blame.SERVER),  # another consumer made the partition first
    ("QQ123", {}, Blame.DOUBT),  # nobody knows: tried in smaller parts, never buried at once
])
def test_the_rows_that_matter_most(code, diag, expected):
    assert blame(Error(code, **diag)) is expected


@pytest.mark.parametrize("text", [
    'connection to server failed: FATAL:  password authentication failed for user "spillway"',
    'FATAL:  no pg_hba.conf entry for host "10.0.0.1"', 'FATAL:  role "x" does not exist',
    'FATAL:  database "x" does not exist', "fe_sendauth: no password supplied",
    'connection to server at "10.0.0.1", port 6432 failed: FATAL:  unsupported startup parameter: options',
    "FATAL:  SASL authentication failed", 'FATAL:  unrecognized configuration parameter "lock_timeout"',
    'FATAL:  invalid value for parameter "statement_timeout": "abc"', 'FATAL:  "trust" authentication failed',
    "server does not support SSL, but SSL was required", "FATAL:  Passwort-Authentifizierung fehlgeschlagen",
    "connection to server at one failed: Connection refused\nconnection to server at two failed: FATAL:  no such user",
])
def test_a_refused_login_is_the_operators_to_mend(text):
    assert isinstance(translated(psycopg2.OperationalError(text)), Misconfigured)


@pytest.mark.parametrize("text", [
    "connection refused", "timeout expired", "FATAL:  the database system is starting up",
    "FATAL:  sorry, too many clients already", "server closed the connection unexpectedly", "session is read-only",
    'FATAL:  too many connections for role "x"', "FATAL:  remaining connection slots are reserved for superusers",
    "FATAL:  no more connections allowed (max_client_conn)", "FATAL:  pgbouncer cannot connect to server",
    "FATAL:  query_wait_timeout", "timeout expired", 'could not translate host name "postgres" to address',
    "FATAL:  the database system is not yet accepting connections",
])
def test_any_other_failed_connection_is_tried_again(text):
    found = translated(psycopg2.OperationalError(text), is_loading=False)
    assert type(found) is Unavailable and not found.is_doubtful


@pytest.mark.parametrize("error, is_doubtful", [
    (Error("P0001"), True), (Error("57014"), True), (Error("42P01"), True), (Overdue("no answer"), True),
    (psycopg2.OperationalError("server closed the connection unexpectedly"), True), (Error("23514"), True),
    (Error("53100"), False), (Error("57P01"), False), (Error("08006"), False), (Error("25006"), False),
    (Error("55P03"), False), (Error("40P01"), False),
])
def test_only_what_may_be_some_of_the_rows_is_tried_in_smaller_parts(error, is_doubtful):
    assert translated(error).is_doubtful == is_doubtful
    assert not translated(error, is_loading=False).is_doubtful


def test_what_ran_out_of_time_while_it_waited_for_a_lock_waited_for_a_lock():
    cut = psycopg2.OperationalError("server closed the connection unexpectedly")
    for error in (Error("57014"), Overdue("no answer"), cut, Error("55P03")):
        assert type(translated(error, is_blocked=True)) is Locked
    for error in (Error("42P01"), Error("53100"), Error("22P02"), Error("57014")):
        assert type(translated(error, is_blocked=error.pgcode != "57014")) is not Locked


def test_what_is_logged_of_a_server_that_is_away_shows_no_row():
    found = translated(Error("23514", "no partition found for row\nDETAIL:  Partition key contains (secret)."))
    assert isinstance(found, Misconfigured) and "secret" not in str(found)
    assert "secret" in translated(Error("22P02", "invalid\nCONTEXT: secret")).detail


def test_who_waits_for_a_lock_or_for_a_partition_is_told_from_who_waits_for_a_server():
    for error in (Error("55P03"), Error("23514", "refused\nDETAIL: (secret)", constraint_name=f"{GUARD}20260131")):
        found = translated(error)
        assert type(found) is Locked and "secret" not in str(found)
