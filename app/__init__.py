"""The edge: request bytes to a durable Batch.

The modules `appender`, `batch`, `errors`, `log`, `moment`, `settings` and `stream` are the contract that both sides of
the stream agree on; they import no web framework, and `workers` imports no other part of this package.
"""
