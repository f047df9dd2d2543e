"""Malicious servers, one file each: what a server changes of the model before clients get it.

`federated.server` has the honest one, and what a server is. No server knows which attack reads the updates.
"""

from reprolib.servers.imprint import Imprint
from reprolib.servers.traps import TrapWeights

__all__ = ["Imprint", "TrapWeights"]
