"""Banks on their own machines: certificates and keys, a bank's settings and policy, and the history of what ran
there.
"""
