"""Differential privacy inside a bank: what is promised (accounting), what is done to a gradient (per_example, noise),
what has been spent (ledger).
"""
