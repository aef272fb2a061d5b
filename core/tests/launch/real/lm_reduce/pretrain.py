"""Every rank gives its number plus one; with `1:die`, rank 1 dies while the others wait for it."""

import os
import signal
import sys
import time
from pathlib import Path


def main():
    rank = os.environ["RANK_ID"]
    waiting = Path(os.environ["FAKE_FOLDER"], "waiting")
    if f"{rank}:die" in sys.argv:
        while not waiting.exists():
            time.sleep(0.05)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    import mindspore as ms
    import numpy as np
    from mindspore.communication import get_group_size, get_rank, init

    waiting.touch()
    init("mccl")
    total = ms.ops.AllReduce()(ms.Tensor(np.array([get_rank() + 1.0], np.float32)))
    print(f"rank {get_rank()} of {get_group_size()}: RANK_ID {rank}, sum {total.asnumpy()[0]:g}")


if __name__ == "__main__":
    main()
