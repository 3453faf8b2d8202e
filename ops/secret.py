"""Files that their owner alone may read: generated passwords, and configuration that holds them."""

import os
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
