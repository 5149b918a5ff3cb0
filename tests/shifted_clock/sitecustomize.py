"""Put on PYTHONPATH by a test: the processes that it starts believe that it is CLOCK_SHIFT_S seconds later than it
is.
"""

import datetime
import os
import time

SHIFT_S = float(os.environ.get("CLOCK_SHIFT_S", "0"))
true_time = time.time


class ShiftedDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=SHIFT_S)


if SHIFT_S:
    time.time = lambda: true_time() + SHIFT_S
    datetime.datetime = ShiftedDatetime
