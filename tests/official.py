"""The release of PanGu-alpha's authors: parts of a run, its strategy file, and three arrays.

Those made here are of a tiny model and of few ranks, cut and written without MindSpore.
"""

from __future__ import annotations

import numpy as np

from lm_core.checkpoint import ckpt
from lm_core.checkpoint.layout import Memory
from lm_pangualpha.config import PRESETS
from lm_pangualpha.weights import TABLES

RUN = """
seed: 0
trainer: {type: CausalLanguageModelingTrainer, model_name: pangualpha_2_6b}
model:
  model_config:
    type: PanguAlphaConfig
    hidden_size: 32
    num_layers: 3
    num_heads: 4
    vocab_size: 96
    seq_length: 16
    hidden_act: gelu
    pad_token_id: 6
    eod_token_id: 6
    eos_token_id: 9
    param_init_type: float32
    embedding_dropout_prob: 0.1
    hidden_dropout_rate: 0.1
    attention_dropout_rate: 0.1
    use_past: False
    use_moe: False
    expert_num: 1
    per_token_num_experts_chosen: 1
    max_decode_length: 16
  arch: {type: PanguAlphaHeadModel}
processor:
  return_tensors: ms
  tokenizer: {type: PanguAlphaTokenizer}
  type: PanguAlphaProcessor
"""
"""The part of MindFormers' run file that is about the model."""
CONFIG = PRESETS["pangualpha_tiny"].copy(
    hidden_size=32, num_heads=4, vocab_size=96, seq_length=16, hidden_act="gelu_tanh"
)
TABLE = "backbone.embedding.word_embedding.embedding_table"
ARRAYS = {
    "word_embedding": TABLE,
    "position_embedding": "backbone.embedding.position_embedding.embedding_table",
    "top_query_embedding": "backbone.top_query_embedding.embedding_table",
}
ROWS = ("dense1.weight", "dense2.weight", "dense3.weight", "projection.weight")
ROWS += ("dense1.bias", "dense2.bias", "dense3.bias", "mapping.bias", "word_embedding_table")
CUTS = {
    "tensor": ((1, 4), False),
    "copies": ((2, 2), False),
    "optimizer": ((4, 2), True),
    "alone": ((1, 1), False),
    "data": ((4, 1), True),
}
"""Device matrices, data and tensor parallel; and whether the former cuts the first dimension."""


def number(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(key, value):
    """A field of a protobuf message."""
    if isinstance(value, int):
        return number(key << 3) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(key << 3 | 2) + number(len(value)) + value


def strategy_file(items):
    """What MindSpore's `strategy_ckpt_save_file` holds."""
    out = field(1, 0) + field(2, field(1, "op0") + field(2, field(1, 0)))
    for name, (devices, axes, parts, step) in items.items():
        matrix, tensor_map = (b"".join(field(1, v) for v in values) for values in (devices, axes))
        layout = field(1, matrix) + field(2, tensor_map) + field(3, b"")
        layout += field(5, 0) + field(6, step) + field(7, parts)
        out += field(3, field(1, name) + field(2, layout))
    return out


def item(name, shape, devices, sharded):
    """How the authors' program cut a tensor: device matrix, tensor map, optimizer's parts, step."""
    axes = [-1] * len(shape)
    if name.endswith(ROWS):
        axes[0] = 0
    elif name.endswith("mapping.weight"):
        axes[1] = 0
    data, tensor = devices
    if not sharded or "layernorm" in name or "embedding" in name:
        return devices, axes, 0, 0
    # The ranks that have the same are a group, whose neighbours are `tensor` ranks apart.
    return (devices, axes, data, tensor) if 0 in axes else (devices, axes, data * tensor, 1)


def part_of(array, rank, devices, axes, parts, step):
    place = np.unravel_index(rank, devices)
    for dim, axis in enumerate(axes):
        if axis >= 0:
            array = np.split(array, devices[-1 - axis], dim)[place[-1 - axis]]
    if parts:
        array = np.split(array, parts, 0)[rank // step % parts]
    return np.ascontiguousarray(array)


def whole_tensors(config=CONFIG, seed=0, dtype=np.float32):
    """Under the names of the release; no two numbers of a tensor are alike."""
    rng = np.random.default_rng(seed)
    nothing = {n: np.empty(s, np.dtype([])) for n, s in TABLES["hf"].shapes(config).items()}
    specs = TABLES["official"].save(Memory(nothing), config).specs
    return {name: rng.standard_normal(spec.shape).astype(dtype) for name, spec in specs.items()}


def write_release(folder, arrays, cut="optimizer", stem="13B_"):
    """Its three folders, and what the strategy file says."""
    devices, sharded = CUTS[cut]
    for name in ("parts", "npy"):
        (folder / name).mkdir(parents=True)
    for name, tensor in ARRAYS.items():
        np.save(folder / "npy" / f"{stem}{name}.npy", arrays[tensor])
    # Older tables under older names, which nobody reads.
    inside = {n: a for n, a in arrays.items() if n not in ARRAYS.values()}
    inside |= {"word_embedding_table": np.zeros((96, 32), np.float32), "step_num": np.int32([7])}
    items = {n: item(n, a.shape, devices, sharded) for n, a in inside.items() if n != "step_num"}
    items |= {f"adam_m.{name}": said for name, said in items.items()}
    for rank in range(int(np.prod(devices))):
        held = {n: part_of(a, rank, *items[n]) if n in items else a for n, a in inside.items()}
        ckpt.write(folder / "parts" / f"filerted_{rank}.ckpt", Memory(held))
    (folder / "pangu_alpha_ckpt_strategy.ckpt").write_bytes(strategy_file(items))
    (folder / "run.yaml").write_text(RUN)
    return items


def words(folder, output, *more, **changed):
    places = {
        "official_strategy_path": folder / "pangu_alpha_ckpt_strategy.ckpt",
        "official_ckpt_dir": folder / "parts",
        "official_npy_dir": folder / "npy",
        "ckpt_save_path": output,
        "config_path_or_name": folder / "run.yaml",
    }
    flags = [(f"--{k}", str(v)) for k, v in (places | changed).items() if v is not None]
    return ["convert", "pangualpha", *(w for flag in flags for w in flag), *map(str, more)]


def contents(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
