"""Who is to blame for a load that failed: one table, from what psycopg2 raises to what follows.

The unknown is the server's fault: it is tried again, and never buried at once.

Source: https://www.postgresql.org/docs/current/errcodes-appendix.html; what psycopg2 raises was tried on PostgreSQL 18.
"""

import re
from enum import Enum, auto

import psycopg2

from workers.errors import Locked, Misconfigured, Poison, Unavailable
from workers.schema import GUARD


class Blame(Enum):
    """What follows from an error."""

    DATA = auto()  # find the events at fault and bury them
    SERVER = auto()  # back off and try again
    OPERATOR = auto()  # the same, for as long as it takes, and say what to mend
    LOCK = auto()  # the same, for as long as it takes
    DONE = auto()  # the ledger knows the batch: the next try finds it there


CLASSES = {
    "00": Blame.SERVER,  # successful completion
    "01": Blame.SERVER,  # warning
    "02": Blame.SERVER,  # no data
    "03": Blame.SERVER,  # statement not yet complete
    "08": Blame.SERVER,  # connection exception
    "09": Blame.SERVER,  # triggered action exception
    "0A": Blame.OPERATOR,  # feature not supported
    "0B": Blame.SERVER,  # invalid transaction initiation
    "0F": Blame.SERVER,  # locator exception
    "0L": Blame.OPERATOR,  # invalid grantor
    "0P": Blame.OPERATOR,  # invalid role
    "0Z": Blame.SERVER,  # diagnostics exception
    "10": Blame.SERVER,  # XQuery error
    "20": Blame.SERVER,  # case not found
    "21": Blame.SERVER,  # cardinality violation
    "22": Blame.DATA,  # data exception
    "23": Blame.DATA,  # integrity constraint violation
    "24": Blame.SERVER,  # invalid cursor state
    "25": Blame.SERVER,  # invalid transaction state: read-only, after a failover
    "26": Blame.SERVER,  # invalid statement name
    "27": Blame.SERVER,  # triggered data change violation
    "28": Blame.OPERATOR,  # invalid authorization
    "2B": Blame.OPERATOR,  # dependent privileges
    "2D": Blame.SERVER,  # invalid transaction termination
    "2F": Blame.SERVER,  # SQL routine exception
    "34": Blame.SERVER,  # invalid cursor name
    "38": Blame.SERVER,  # external routine exception
    "39": Blame.SERVER,  # external routine invocation
    "3B": Blame.SERVER,  # savepoint exception
    "3D": Blame.OPERATOR,  # no such database
    "3F": Blame.OPERATOR,  # no such schema
    "40": Blame.SERVER,  # transaction rollback: deadlock, serialization
    "42": Blame.OPERATOR,  # no such table or column, no permission
    "44": Blame.SERVER,  # WITH CHECK OPTION
    "53": Blame.SERVER,  # insufficient resources: disk full, too many connections
    "54": Blame.DATA,  # program limit exceeded: nested too deep, too long for an index
    "55": Blame.SERVER,  # object not in prerequisite state
    "57": Blame.SERVER,  # operator intervention: shutdown, cancelled
    "58": Blame.SERVER,  # system error: I/O
    "72": Blame.SERVER,  # snapshot too old
    "F0": Blame.OPERATOR,  # configuration file error
    "HV": Blame.SERVER,  # foreign data wrapper
    "P0": Blame.SERVER,  # PL/pgSQL: a trigger that raises
    "XX": Blame.SERVER,  # internal error
}

CODES = {
    "42P04": Blame.SERVER,  # duplicate database, schema, table, object: another consumer was first
    "42P06": Blame.SERVER,
    "42P07": Blame.SERVER,
    "42710": Blame.SERVER,
    "42P17": Blame.SERVER,  # two partitions would overlap: the same
    "54011": Blame.OPERATOR,  # too many columns
    "55P03": Blame.LOCK,  # a lock that was not to be had
}

# Without a SQLSTATE: the driver's own, or a connection that failed. The first that fits counts.
TYPES = {
    psycopg2.DataError: Blame.DATA,
    ValueError: Blame.DATA,  # with UnicodeError: psycopg2 cannot send it
    psycopg2.ProgrammingError: Blame.OPERATOR,  # DATABASE_URL has an option that there is not
    psycopg2.Error: Blame.SERVER,
    psycopg2.Warning: Blame.SERVER,
}

# psycopg2 gives no SQLSTATE for a refused connection. Servers that speak another language are tried again and again.
_REFUSED = re.compile(
    r"authentication failed|no pg_hba\.conf entry|(role|database) \".*\" does not exist|permission denied for database|"
    r"no password supplied|is not permitted to log in"
)
_CHECK = "23514"
_ERRORS = {Blame.OPERATOR: Misconfigured, Blame.LOCK: Locked}


def blame(error: Exception) -> Blame:
    """Returns who is to blame for what psycopg2 raised."""
    code = getattr(error, "pgcode", None)
    if code is None:
        is_refused = isinstance(error, psycopg2.OperationalError) and _REFUSED.search(str(error))
        return Blame.OPERATOR if is_refused else next(found for kind, found in TYPES.items() if isinstance(error, kind))
    diag = getattr(error, "diag", None)
    if code == _CHECK and diag and (diag.constraint_name or "").startswith(GUARD):
        return Blame.LOCK  # the keeper is making the partition of the row's day
    if code == _CHECK and diag and diag.constraint_name is None:
        return Blame.OPERATOR  # no partition for the row: a data error by its code alone
    if code == "23505" and diag and diag.table_name == "log_batches":
        return Blame.DONE
    return CODES.get(code) or CLASSES.get(code[:2], Blame.SERVER)


def translated(error: Exception) -> Poison | Unavailable:
    """Returns the error of ours for what psycopg2 raised."""
    cause = getattr(error, "pgcode", None) or type(error).__name__
    found = blame(error)
    if found is Blame.DATA:
        return Poison(cause, str(error).strip())
    # The first line alone: those that follow may show the row.
    return _ERRORS.get(found, Unavailable)(cause, str(error).strip().partition("\n")[0])
