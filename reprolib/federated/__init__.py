"""The protocol: what a client computes from its inputs, what of it the server sees, and how both are counted.

No attack and no defense stands here; both build on it.
"""
