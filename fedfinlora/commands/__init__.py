"""The commands: the only part of the library that may import `data`, `eval` and the two apps, and it does so when a
command runs.
"""
