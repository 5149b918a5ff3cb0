"""Put on PYTHONPATH by a test: a SuperNode that it starts waits WAIT_S seconds for an answer where Flower waits
thirty.
"""

import os
import sys

WAIT_S = float(os.environ.get("WAIT_S", "0"))

if WAIT_S and "supernode" in sys.orig_argv:
    import httpx

    make = httpx.Client.__init__

    def made(self, *arguments, **settings):
        make(self, *arguments, **{**settings, "timeout": WAIT_S})

    httpx.Client.__init__ = made
