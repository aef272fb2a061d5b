"""Splits, merges or recuts a checkpoint; the same as `lm transform MODEL`, for files of any model.

python tools/transform_ckpt.py --src_ckpt_dir DIR --dst_ckpt_dir DIR
[--src_ckpt_strategy S] [--dst_ckpt_strategy S] [--prefix P]
"""

from lm_core.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("transform"))
