"""How fast it is, each figure beside its limit: what the machine does of the same without us, measured in the same run.

A part (`end_to_end`, `latency`, `outage`, `drain`, `poison`, `variant`, `compression`, `curve` with `backlog` and
`growth`, `peer`) measures and yields `figure.Figure`s; nothing is shown that was not measured, and a request that is
refused while something is measured ends the run. `against` measures another checkout's code beside this one's.
"""

from ops.bench.command import add_arguments, run

__all__ = ["add_arguments", "run"]
