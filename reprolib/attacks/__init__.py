"""The attacks, one file a paper."""

from reprolib.attacks.dlg import DLG
from reprolib.attacks.idlg import IDLG
from reprolib.attacks.plain import PlainDLG
from reprolib.attacks.reconstruction import History, Reconstruction

__all__ = ["DLG", "IDLG", "History", "PlainDLG", "Reconstruction"]
