"""Put on PYTHONPATH by a test: a SuperNode that it starts waits WAIT_S seconds for an answer where Flower waits
thirty, tries again after RETRY_S seconds at the latest where Flower takes up to twenty, and looks for a message after
POLL_S seconds where Flower takes three.
"""

import os
import sys
import time
import types

WAIT_S, RETRY_S, POLL_S = (float(os.environ.get(name, "0")) for name in ("WAIT_S", "RETRY_S", "POLL_S"))

if (WAIT_S or RETRY_S or POLL_S) and "supernode" in sys.orig_argv:
    import httpx

    make = httpx.Client.__init__

    def made(self, *arguments, **settings):
        retry = sys.modules.get("flwr.supercore.retry.http_retry")
        if RETRY_S and retry:
            retry.MAX_RETRY_DELAY = RETRY_S
        loop = sys.modules.get("flwr.supernode.start_client_internal")
        if POLL_S and loop:
            loop.time = types.SimpleNamespace(**vars(time))
            loop.time.sleep = lambda seconds: time.sleep(min(seconds, POLL_S))
        make(self, *arguments, **{**settings, **({"timeout": WAIT_S} if WAIT_S else {})})

    httpx.Client.__init__ = made
