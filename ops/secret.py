"""Files that their owner alone may read: generated passwords, and configuration that holds them."""

import os
import re
import secrets
from pathlib import Path


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Writes `path` whole or not at all.

    Durability: on return.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def password(path: Path) -> str:
    """Returns the password in `path`, made on first use: it must outlive every restart of its server."""
    if not path.exists():
        write(path, secrets.token_urlsafe(24))
    return path.read_text(encoding="utf-8")


def redacted(url: str) -> str:
    """Returns a URL without its password, wherever that stands."""
    without = re.sub(r"(://[^:@/]*:).*(?=@)", r"\1***", url)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", without)


def hidden(text: str, url: str) -> str:
    """Returns a text without what it may have quoted of the password of a URL, such as the half behind an `@`."""
    found = re.findall(r"://[^:@/]*:(.*)@|[?&](?:ssl)?password=([^&]*)", url)
    pieces = {piece for pair in found for word in pair for piece in (word, *re.split(r"[@:/?#%]", word)) if piece}
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, "***")
    return text
