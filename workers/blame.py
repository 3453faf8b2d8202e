"""Who is to blame for a load that failed: one table, from what psycopg2 raises to what follows.

The unknown is tried again, in smaller parts, and never buried at once.

Source: https://www.postgresql.org/docs/current/errcodes-appendix.html; what psycopg2 raises was tried on PostgreSQL 18.
"""

import re
from enum import Enum, auto

import psycopg2

from workers.errors import Locked, Misconfigured, Poison, Unavailable
from workers.schema import GUARD
from workers.watchdog import Overdue


class Blame(Enum):
    """What follows from an error."""

    DATA = auto()  # find the events at fault and bury them
    SERVER = auto()  # back off and try again
    DOUBT = auto()  # the same, in smaller parts: it may be some of the rows
    LOCK = auto()  # wait for as long as it takes, and say who holds it
    OPERATOR = auto()  # the same, for as long as it takes, and say what to mend
    DONE = auto()  # the ledger knows the batch: the next try finds it there


CLASSES = {
    "00": Blame.DOUBT,  # successful completion
    "01": Blame.DOUBT,  # warning
    "02": Blame.DOUBT,  # no data
    "03": Blame.DOUBT,  # statement not yet complete
    "08": Blame.SERVER,  # connection exception
    "09": Blame.DOUBT,  # triggered action exception
    "0A": Blame.OPERATOR,  # feature not supported
    "0B": Blame.DOUBT,  # invalid transaction initiation
    "0F": Blame.DOUBT,  # locator exception
    "0L": Blame.OPERATOR,  # invalid grantor
    "0P": Blame.OPERATOR,  # invalid role
    "0Z": Blame.DOUBT,  # diagnostics exception
    "10": Blame.DOUBT,  # XQuery error
    "20": Blame.DOUBT,  # case not found
    "21": Blame.DOUBT,  # cardinality violation
    "22": Blame.DATA,  # data exception
    "23": Blame.DATA,  # integrity constraint violation
    "24": Blame.DOUBT,  # invalid cursor state
    "25": Blame.SERVER,  # invalid transaction state: read-only, after a failover
    "26": Blame.DOUBT,  # invalid statement name
    "27": Blame.DOUBT,  # triggered data change violation
    "28": Blame.OPERATOR,  # invalid authorization
    "2B": Blame.OPERATOR,  # dependent privileges
    "2D": Blame.DOUBT,  # invalid transaction termination
    "2F": Blame.DOUBT,  # SQL routine exception
    "34": Blame.DOUBT,  # invalid cursor name
    "38": Blame.DOUBT,  # external routine exception
    "39": Blame.DOUBT,  # external routine invocation
    "3B": Blame.DOUBT,  # savepoint exception
    "3D": Blame.OPERATOR,  # no such database
    "3F": Blame.OPERATOR,  # no such schema
    "40": Blame.SERVER,  # transaction rollback: deadlock, serialization
    "42": Blame.OPERATOR,  # no such table or column, no permission
    "44": Blame.DOUBT,  # WITH CHECK OPTION
    "53": Blame.SERVER,  # insufficient resources: disk full, too many connections
    "54": Blame.DATA,  # program limit exceeded: nested too deep, too long for an index
    "55": Blame.DOUBT,  # object not in prerequisite state
    "57": Blame.SERVER,  # operator intervention: shutdown
    "58": Blame.DOUBT,  # system error: I/O, maybe of one partition
    "72": Blame.SERVER,  # snapshot too old
    "F0": Blame.OPERATOR,  # configuration file error
    "HV": Blame.DOUBT,  # foreign data wrapper
    "P0": Blame.DOUBT,  # PL/pgSQL: a trigger that raises
    "XX": Blame.DOUBT,  # internal error
}

CODES = {
    "42P04": Blame.SERVER,  # duplicate database, schema, table, object: another consumer was first
    "42P06": Blame.SERVER,
    "42P07": Blame.SERVER,
    "42710": Blame.SERVER,
    "42P17": Blame.SERVER,  # two partitions would overlap: the same
    "40P01": Blame.LOCK,  # deadlock
    "54011": Blame.OPERATOR,  # too many columns
    "55P03": Blame.LOCK,
    "57014": Blame.DOUBT,  # it took too long, or somebody cancelled it
}

# Without a SQLSTATE: the driver's own, or a connection that failed. The first that fits counts.
TYPES = {
    Overdue: Blame.DOUBT,
    psycopg2.DataError: Blame.DATA,
    ValueError: Blame.DATA,  # with UnicodeError: psycopg2 cannot send it
    psycopg2.ProgrammingError: Blame.OPERATOR,  # DATABASE_URL has an option that there is not
    psycopg2.Error: Blame.SERVER,
    psycopg2.Warning: Blame.SERVER,
}

# psycopg2 gives no SQLSTATE for a refused connection. Whoever refuses one says FATAL, and few such refusals pass by
# themselves: these, of PostgreSQL and of pgbouncer. Servers that speak another language are held.
_PASSES = re.compile(
    r"the database system is|too many (clients|connections)|connection slots are reserved|terminating connection|"
    r"canceling authentication|could not |out of memory|No space left|no more connections allowed|"
    r"cannot connect to server|server login has been failing|FATAL:  \w+_timeout|is shutting down|shut down|server conn"
)
_REFUSED = re.compile(
    r"FATAL: |authentication failed|no pg_hba\.conf entry|(role|database) \".*\" does not exist|no password supplied|"
    r"authentication method|does not support SSL|certificate|SCRAM|channel binding"
)
_CHECK = "23514"


def blame(error: Exception) -> Blame:
    """Returns who is to blame for what psycopg2 raised."""
    code = getattr(error, "pgcode", None)
    if code is None:
        is_refused = isinstance(error, psycopg2.OperationalError) and any(map(_is_refusal, str(error).splitlines()))
        return Blame.OPERATOR if is_refused else next(found for kind, found in TYPES.items() if isinstance(error, kind))
    diag = getattr(error, "diag", None)
    if code == _CHECK and diag and (diag.constraint_name or "").startswith(GUARD):
        return Blame.LOCK  # the keeper is making the partition of the row's day
    if code == _CHECK and diag and diag.constraint_name is None:
        return Blame.OPERATOR  # no partition for the row: a data error by its code alone
    if code == "23505" and diag and diag.table_name == "log_batches":
        return Blame.DONE
    return CODES.get(code) or CLASSES.get(code[:2], Blame.DOUBT)


def translated(error: Exception, is_loading: bool = True, is_blocked: bool = False) -> Poison | Unavailable:
    """Returns the error of ours for what psycopg2 raised.

    Args:
        is_loading: It came from a load, not from connecting.
        is_blocked: When it was last looked at, it waited for somebody's lock.
    """
    cause = getattr(error, "pgcode", None)
    found = blame(error)
    name = cause or type(error).__name__
    if found is Blame.DATA:
        return Poison(name, str(error).strip())
    # The first line alone: those that follow may show the row.
    detail = str(error).strip().partition("\n")[0]
    if found is Blame.OPERATOR:
        return Misconfigured(name, detail, is_doubtful=is_loading)
    # A cut may be an outage, a limit of the operator's on transactions, or what these rows do to their backend.
    is_unclear = found is Blame.DOUBT or cause is None
    if found is Blame.LOCK or is_unclear and is_blocked:
        # Rows of the day whose partition is being made may have to wait for longer than others should.
        return Locked(name, detail, is_doubtful=is_loading and cause == _CHECK)
    return Unavailable(name, detail, is_doubtful=is_loading and is_unclear)


def _is_refusal(line: str) -> bool:
    """Tells whether that is what one of the servers of DATABASE_URL said, and no repetition helps."""
    return bool(_REFUSED.search(line)) and not _PASSES.search(line)
