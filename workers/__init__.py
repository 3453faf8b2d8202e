"""The processes behind the stream: durable Batch to committed rows.

Plain blocking processes. They do not exit because a server is away, and memory may vanish at any line: what matters
is in Redis and PostgreSQL.
"""
