"""Every rank gives its number plus one; `1:die` ends rank 1 before it meets the others."""

import os
import signal
import sys


def main():
    rank = os.environ["RANK_ID"]
    if f"{rank}:die" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    import mindspore as ms
    import numpy as np
    from mindspore.communication import get_group_size, get_rank, init

    init("mccl")
    total = ms.ops.AllReduce()(ms.Tensor(np.array([get_rank() + 1.0], np.float32)))
    print(f"rank {get_rank()} of {get_group_size()}: RANK_ID {rank}, sum {total.asnumpy()[0]:g}")
    if f"{rank}:die_later" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    if "all:again" in sys.argv:
        ms.ops.AllReduce()(ms.Tensor(np.array([1.0], np.float32))).asnumpy()


if __name__ == "__main__":
    main()
