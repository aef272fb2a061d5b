"""The scheduler waits for workers that end; this one ends by itself, as FAKE_SCHEDULER says."""

import os
import sys
import time


def init():
    status = os.environ.get("FAKE_SCHEDULER", "0")
    if status == "stays":
        time.sleep(100)
    sys.exit(int(status))
