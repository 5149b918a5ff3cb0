"""`fedfinlora/__init__.py` of the wheel: the project lies in its folder _app, named as in a checkout, and its modules
are found there.
"""

__path__ = [f"{place}/_app/fedfinlora" for place in __path__]  # noqa: F821

with open(f"{__path__[0]}/__init__.py", encoding="utf-8") as _file:
    exec(_file.read())
