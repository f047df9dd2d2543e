"""reprolib: attacks, defenses, metrics and the ledger behind the book *Leaky Gradients*."""
