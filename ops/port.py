"""Refuses a start when a port is taken, before anything is started."""

import socket
from collections.abc import Iterable
from contextlib import ExitStack
from typing import NamedTuple

from app.errors import SettingError
from ops import program


class Port(NamedTuple):
    """An address to listen on, and the setting that moves it."""

    setting: str
    host: str
    number: int


def check(ports: Iterable[Port]) -> None:
    """Binds all of them at once, so that two settings with the same port are found too, and lets go.

    Raises:
        SettingError: One cannot be had.
    """
    with ExitStack() as held:
        for port in ports:
            family = socket.AF_INET6 if ":" in port.host else socket.AF_INET
            listener = held.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((port.host, port.number))
                listener.listen()
            except OSError as error:
                raise SettingError(
                    f"{port.setting}={port.number}: cannot listen on {program.authority(port.host, port.number)} "
                    f"({error.strerror}); set {port.setting} to another port, or end what uses this one"
                ) from error
