"""Where one experiment takes place: load on a target, somebody who looks, and what is written down of it."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ops.chaos import interrupt, recorder
from ops.chaos.evidence import Evidence, Mark, Sample
from ops.chaos.fault import FAULTS
from ops.chaos.load import Load
from ops.chaos.recorder import Recorder
from ops.chaos.supervised import Supervised
from ops.chaos.target import Target
from ops.errors import ChaosFailed

_STEP_S = 0.1
_SHOW_EVERY_S = 5.0
_ANSWER_S = 15.0
_BEGIN_S = 60.0
_DRAIN_S = 240.0
_SHOWN = {"wal_active": "wal_active", "stream_entries": "stream", "pending": "pending", "dead_letters": "letters",
          "loaded_events": "loaded"}


class Stage:
    """One experiment on a target.

    Args:
        name: Of the experiment.
        duration_s: For how long a fault stays.
        facts: What the judge has to know of the settings.
    """

    def __init__(self, name: str, target: Target, load: Load, duration_s: float, facts: dict[str, Any]) -> None:
        self.target = target
        self.duration_s = duration_s
        self.evidence = Evidence(name, facts=dict(facts))
        self._load = load
        self._recorder = Recorder(target.hosts)
        self._shown_at = 0.0

    @property
    def latest(self) -> Sample:
        """What was seen last."""
        return self._recorder.latest

    def elapsed_s(self) -> float:
        """Returns for how long the experiment has gone on."""
        return time.time() - self.evidence.marks[0].at

    @contextmanager
    def played(self) -> Iterator[None]:
        """Drives load; whatever happens, nothing goes on behind.

        Raises:
            ChaosFailed: Nobody answers, or there are letters already, which the experiment would replay as its own.
        """
        self._recorder.start()
        try:
            self.mark("look")
            self._look_first()
            self.mark("load")
            self._load.start()
            yield
        finally:
            self._load.kill()
            self._recorder.stop()

    def _look_first(self) -> None:
        if not self.until(lambda seen: "dead_letters" in seen.values, _ANSWER_S):
            raise ChaosFailed(f"{self.target.places.admin_url} did not say within {_ANSWER_S:.0f} s how things stand")
        if letters := self.latest.values.get("dead_letters"):
            raise ChaosFailed(f"there are {letters:,.0f} dead letters already: replay or purge them first "
                              "(`spillway dlq`)")

    def baseline(self) -> None:
        """Waits until rows arrive, and looks at the service while nothing is broken."""
        before = self.latest.values.get("loaded_events", 0.0)
        if not self.until(lambda seen: seen.values.get("loaded_events", 0.0) > before, _BEGIN_S):
            raise ChaosFailed(f"no event was stored within {_BEGIN_S:.0f} s; nothing was broken yet")
        self.hold(2.0)
        self.mark("baseline")
        self.hold(max(5.0, self.duration_s / 3))

    @contextmanager
    def broken(self, name: str) -> Iterator[None]:
        """Injects a fault, and heals it in the end, whatever happens."""
        assert isinstance(self.target, Supervised), "only what supervisor runs can be broken in every way"
        fault, target = FAULTS[name], self.target
        if lack := fault.lacks(target):
            raise ChaosFailed(f"{name} cannot be injected here: {lack}")
        with self._fault(name, fault.text, lambda: fault.applied(target)):
            yield

    @contextmanager
    def stopped(self, server: str) -> Iterator[None]:
        """Stops a server, and starts it in the end, whatever happens."""
        def inject() -> Callable[[], None]:
            try:
                self.target.stop(server)
            except ChaosFailed:
                self.target.start(server)
                raise
            return lambda: self.target.start(server)
        with self._fault(f"{server}-stop", f"{server} is stopped", inject):
            yield

    @contextmanager
    def _fault(self, name: str, text: str, inject: Callable[[], Callable[[], None]]) -> Iterator[None]:
        self.mark(f"inject {name}")
        heals: list[Callable[[], None]] = []
        try:
            with interrupt.postponed():
                heals.append(inject())
            self.mark(f"injected {name}", text)
            yield
        finally:
            with interrupt.postponed():
                self._heal(name, heals)

    def _heal(self, name: str, heals: list[Callable[[], None]]) -> None:
        for heal in heals:
            self.mark(f"heal {name}")
            heal()
            self.mark(f"healed {name}")

    def mark(self, name: str, text: str = "") -> None:
        """Writes down, and says, that something was done now."""
        self.evidence.marks.append(Mark(time.time(), name))
        self._say(f"{name}{text and ': '}{text}")

    def hold(self, duration_s: float) -> None:
        """Lets things be as they are."""
        self.until(lambda seen: False, duration_s)

    def until(self, condition: Callable[[Sample], bool], deadline_s: float) -> bool:
        """Waits until what is seen is as wanted; returns whether that came in time."""
        ends_at = time.monotonic() + deadline_s
        while not condition(self.latest):
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(_STEP_S, left_s))
            if time.monotonic() - self._shown_at > _SHOW_EVERY_S:
                self._say(", ".join(f"{shown} {_number(self.latest, name)}" for name, shown in _SHOWN.items()))
        return True

    def drain(self) -> None:
        """Waits until nothing is on its way any more, or says that it did not come to that."""
        since = time.time()
        self.evidence.facts["is_drained"] = self.until(lambda seen: seen.at > since and _is_drained(seen), _DRAIN_S)

    def finish(self, replays_letters: bool = True) -> Evidence:
        """Ends the load, lets everything drain, replays what letters there are, and gathers the evidence."""
        facts = self.evidence.facts
        facts["is_interface_kept"] = self._load.stop() == 0
        self.mark("load ended")
        self.drain()
        self.mark("drained")
        facts["letters_left"] = self.latest.values.get("dead_letters", 0)
        if replays_letters and facts["letters_left"]:
            facts["replayed"] = self.target.replay_letters()
            self.drain()
            self.mark("replayed")
        facts["wal_left"] = self.target.wal_files()
        self.evidence.verdict = self._load.verify(self.target.places.database_url)
        self.evidence.audit = self.target.audit()
        self.mark("verified")
        self._recorder.stop()
        began_at = self.evidence.marks[0].at
        self.evidence.samples = self._recorder.samples
        self.evidence.answers = recorder.answers(self._load.receipts)
        self.evidence.lines = [line for line in self.target.lines() if line.at >= began_at]
        return self.evidence

    def _say(self, text: str) -> None:
        self._shown_at = time.monotonic()
        print(f"{self.evidence.name:16} {self.elapsed_s():5.0f} s  {text}", file=sys.stderr, flush=True)


def _is_drained(seen: Sample) -> bool:
    return all(seen.values.get(name) == 0 for name in ("wal_active", "stream_entries"))


def _number(seen: Sample, name: str) -> str:
    return f"{seen.values[name]:,.0f}" if name in seen.values else "?"
