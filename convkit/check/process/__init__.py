"""Candidates in processes of their own: what they do to their process, they do not do to the judge.

The judge makes the inputs, keeps the answers and owns the clock. A candidate's process gets tensors in memory
that both share, and small messages over a socket; it answers in JSON, which is read as data alone.

`memory` is the shared memory, `candidate` the program of a candidate's process, `limits` what that process
may do, `judge` the other end of its socket, `proxies` the implementations that the gate is given instead.
"""

from ..faults import Lost, Raised
from .judge import Limits
from .proxies import Contained, Remote, contained, group_of, of_file

__all__ = ["Contained", "Limits", "Lost", "Raised", "Remote", "contained", "group_of", "of_file"]
