"""Protocols: who computes what, who sends what, and what becomes of the results. One file each."""
