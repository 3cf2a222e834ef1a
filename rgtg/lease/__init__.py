"""Lease of a run directory: one job at a time writes there, and a job that died does not block the next one for long.

A small file names its holder and changes every few seconds while the holder lives. Another job watches it: a file that
changes belongs to a job that is alive, and one that does not may be taken over. So no clocks are compared. Every
change is conditional on the previous content: under a lock of the file on a disk (`local_file.py`), by If-Match on S3
(`s3_object.py`). `run_lease.py` is the protocol; `holder.py` reads what the file says of its holder.
"""

from rgtg.lease.run_lease import NAME, Lease, held, is_possible

__all__ = ["NAME", "Lease", "held", "is_possible"]
