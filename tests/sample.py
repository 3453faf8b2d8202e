"""What clients may send: texts that are hard to store, and Hypothesis strategies for values of JSON."""

import json
from decimal import Decimal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# The first draw of a fresh checkout is slow, and so is every one on a busy machine: neither is a fault.
steady = settings(deadline=None, suppress_health_check=[
    HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture,
])

# Each is at home in some attack or some real log: COPY's own markers, the encoder's stand-ins, what splits lines
# elsewhere, what looks like another type, what other systems choke on.
NAUGHTY = (
    "", " ", "\t", "\n", "\r", "\r\n", "\\", "\\\\", "\\.", "\n\\.\n", "\\N", "\\n", "\\t", "\\x41", "\\u0041",
    "\\u0000", "\x01", "\x02", "\x02\x02", "\x01\x02\x02\x01", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x9f",
    "\ufeff", "\ufffe\uffff", "\u2028\u2029\x85\x0b\x0c", "a\u0301", "\u202etxt.exe",
    "\U0001f469\u200d\U0001f680", "\U0010ffff", "\u00e9\u4e2d\u6587", "NULL", "null", "NaN", "Infinity", "-infinity",
    "now", "true", "0", "1e400", "1.0000000000000000001",
    '"', "'", "{}", "[]", '{"a": 1}', "a,b;c|d", "$1 ${x} %s %n {0}", "<script>alert(1)</script>",
    "'; DROP TABLE log_events; --", "../../etc/passwd%00", "__proto__", "x" * 3000,
)

texts = st.lists(
    st.sampled_from(NAUGHTY) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
    max_size=4,
).map("".join)

_literals = st.builds(lambda digits, exponent: f"{digits}E{exponent}", st.integers(), st.integers(-99, 99))
_extremes = st.sampled_from((
    "1e308", "-1E-308", "9" * 999, "-" + "9" * 998, f"0.{'1' * 990}", "18446744073709551616", "-9223372036854775809",
    "0.1", "1.10", "-0.0", "5e-324",
))
numbers = st.integers() | (_literals | _extremes).map(Decimal)

values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(texts, values, max_size=5)


def to_json(value, ensure_ascii=False):
    """Writes JSON with each Decimal digit by digit, which the standard library cannot."""
    if isinstance(value, dict):
        pairs = (f"{to_json(name, ensure_ascii)}: {to_json(item, ensure_ascii)}" for name, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(to_json(item, ensure_ascii) for item in value)}]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=ensure_ascii)


def exact(value):
    """Returns a value so that `==` compares numbers exactly, and tells 1 from true."""
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return Decimal(value)
    return type(value), value


def from_json(text):
    """Reads JSON with every number as a Decimal or an exact integer."""
    return json.loads(text, parse_float=Decimal)
