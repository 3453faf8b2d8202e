"""What can go wrong while the service is run, and what the operator does next.

    SpillwayError
    ├── SettingError    (app.errors) mend the environment; nothing was started
    ├── BenchFailed     something could not be measured; no figure of it is shown
    ├── ChaosFailed     an experiment could not be made; it says nothing of the service
    └── StackFailed     the processes did not do what was asked; the message says which and why
        ├── NotReady    they run, and wait for a server that is not theirs; nothing to mend here
        └── Silent      a part that was asked how it stands does not answer; the others are asked all the same
"""

from app.errors import SpillwayError


class StackFailed(SpillwayError):
    """A process did not start, answer or end in time. The message names it, with the end of its log."""


class NotReady(StackFailed):
    """Every process runs, but not everything answers yet; it stays up and becomes ready when its servers do."""


class ChaosFailed(SpillwayError):
    """An experiment could not be made, or not be judged: a tool is missing, or the load itself failed."""


class BenchFailed(SpillwayError):
    """Something could not be measured: a request was refused or not answered meanwhile, or a tool is missing."""


class Silent(StackFailed):
    """A part of the running stack does not answer. The message says why, without passwords; the rest is shown."""
