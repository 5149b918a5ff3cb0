"""Put on PYTHONPATH by a test: a ServerApp that is started with LIES_SENT lies to the bank north, as
tests/helpers/hostile_server.py has it.
"""

import importlib.abc
import importlib.machinery
import os
import sys


class Finder(importlib.abc.MetaPathFinder):
    """Finds `fedfinlora.wire.messages` as it is and makes its `pack_requests` lie once it is loaded."""

    def find_spec(self, name, path, target=None):
        if name != "fedfinlora.wire.messages":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def loaded(module):
            load(module)
            honest = module.pack_requests

            def pack_requests(request, banks):
                from hostile_server import lying_pack_requests

                return lying_pack_requests(honest)(request, banks)

            module.pack_requests = pack_requests

        spec.loader.exec_module = loaded
        return spec


if os.environ.get("LIES_SENT") and any("serverapp" in word for word in sys.orig_argv):
    sys.meta_path.insert(0, Finder())
