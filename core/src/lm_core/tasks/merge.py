"""The verb `merge`: folds an adapter into the weights it was trained on."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lm_core.errors import CheckpointError

if TYPE_CHECKING:
    from lm_core.nn.decoder import CausalLM
    from lm_core.spec import ModelSpec

_PROBE = (2, 32)
"""Rows and tokens of the batch on which both models must agree."""
_TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}
"""Largest difference of logits, as a share of the largest one: rounding of the merged weights."""


def add_arguments(parser: ArgumentParser, spec: ModelSpec) -> None:
    """The flags of `merge`."""
    add = parser.add_argument
    add("--load_checkpoint", required=True, metavar="X", help="the base, or base and adapter")
    add("--load_adapter", metavar="D", help="the adapter, where it does not lie with the base")
    add("--output", required=True, metavar="DIR", help="directory to write")
    add(
        "--format",
        choices=["native", *sorted(spec.tables)],
        default="native",
        help="whose names and files (default: native)",
    )
    add(
        "--config",
        metavar="NAME",
        help="preset or run file, if the weights do not say what they are",
    )
    add(
        "--max_shard_size", metavar="SIZE", help="size of the largest safetensors file, such as 5GB"
    )
    add("--overwrite", action="store_true", help="replace a checkpoint that is there")


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Merges, compares with the model before, writes.

    Raises:
        CheckpointError: base and adapter do not belong together, or the output cannot be written.
    """
    from lm_core.auto import AutoConfig, AutoModel
    from lm_core.checkpoint import hub
    from lm_core.checkpoint.atomic import new_directory
    from lm_core.checkpoint.io import Parameters
    from lm_core.checkpoint.tensorfile import parse_size
    from lm_core.peft.lora import layers, merge_adapter
    from lm_core.tasks.convert import write

    config = AutoConfig.from_pretrained(args.config) if args.config else None
    base = args.load_checkpoint
    model = AutoModel.from_pretrained(base, adapter=args.load_adapter, config=config)
    count = len(layers(model))
    if not count:
        raise CheckpointError(f"{base}: has no adapter to merge; give one with --load_adapter DIR")
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, _PROBE, dtype=np.int32)
    ids = ids[:, : model.config.seq_length]
    before = _logits(model, ids)
    difference = compare(before, _logits(merge_adapter(model), ids), model.config.param_init_type)
    limit = parse_size(args.max_shard_size) if args.max_shard_size else None
    source = hub.resolve(base, spec=spec, config=config)
    source = replace(source, config=model.config)
    merged = Parameters(model.named_parameters())
    with new_directory(args.output, overwrite=args.overwrite) as directory:
        write(directory, source, merged, args.format, limit)
    print(
        f"{args.output}: the adapter on {count} layers is merged, layout {args.format}; "
        f"logits of a probe differ by {difference:.1e}"
    )
    return 0


def compare(before: np.ndarray, after: np.ndarray, dtype: str) -> float:
    """The largest difference of logits; refuses one that rounding does not explain.

    Args:
        before: logits with the adapter beside the weights.
        after: logits of the merged weights.
        dtype: of the weights.

    Raises:
        CheckpointError: they differ.
    """
    difference = float(np.abs(after - before).max())
    allowed = _TOLERANCE[dtype] * max(1.0, float(np.abs(before).max()))
    if not difference <= allowed:
        raise CheckpointError(
            f"merge: logits of the merged model differ by {difference:.1e}; must be at most "
            f"{allowed:.1e} for {dtype} weights; merge in float32 (param_init_type)"
        )
    return difference


def _logits(model: CausalLM, ids: np.ndarray) -> np.ndarray:
    from mindspore import Tensor

    model.set_train(False)
    return model(Tensor(ids)).asnumpy()
