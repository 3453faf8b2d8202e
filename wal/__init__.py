"""A write-ahead log of byte strings: `writer.Writer` appends them durably, `reader.SegmentReader` follows and releases.

Of processes that could read it, `turn.Turn` has one do so.

The directory is the state: no cursor, no manifest. One process writes a segment, one reader follows it, also across
processes and while it is being written. After a crash a segment is read again whole, so whoever takes the records
must bear duplicates. The library imports the standard library alone; it never logs, counts, sleeps, starts threads
or reads the environment. FORMAT.md is the format on one page.
"""
