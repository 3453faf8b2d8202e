"""Levels: the text that a client sends, and the OpenTelemetry severity number that it stands for.

Source: OpenTelemetry log data model, "Field: SeverityNumber" and its appendix B for the other systems' names.
"""

_BASES = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
_NAMES = ("UNSPECIFIED", *(base + (str(step) if step > 1 else "") for base in _BASES for step in (1, 2, 3, 4)))
_NUMBERS = {name: number for number, name in enumerate(_NAMES)} | {
    "INFORMATION": 9, "INFORMATIONAL": 9, "NOTICE": 10, "WARNING": 13, "ERR": 17, "CRITICAL": 18, "CRIT": 18,
    "ALERT": 19, "EMERG": 21, "EMERGENCY": 21, "PANIC": 21,
}


def read(level: str | int) -> tuple[str, int | None]:
    """Returns a level's text, as sent where it was text, and its severity number; None: the text says no number.

    Raises:
        ValueError: A number that is not a severity number.
    """
    if isinstance(level, str):
        return level, _NUMBERS.get(level.upper())
    if not 0 <= level < len(_NAMES):
        raise ValueError(f"{level} is not an OpenTelemetry severity number, 0 to {len(_NAMES) - 1}, nor text")
    return _NAMES[level], level
