"""Tables: both directions, one row at a time, and one report of all that does not fit."""

from types import SimpleNamespace

import numpy as np
import pytest

from lm_core.checkpoint.layout import (
    BFLOAT16,
    Concat,
    Each,
    Memory,
    Native,
    PermuteRope,
    Split,
    Table,
    Tie,
    Transpose,
    cast,
    stream,
)
from lm_core.errors import CheckpointError
from lm_core.testing.parity import assert_same

H, F, V = 8, 12, 10


def config(**changes):
    return SimpleNamespace(**{"num_layers": 2, "tied": True, "hidden": H, **changes})


def shapes(c):
    found = {"embedding.weight": (V, c.hidden), "norm.weight": (c.hidden,)}
    for i in range(c.num_layers):
        found[f"layers.{i}.up.weight"] = (c.hidden, F)
        for name in "qkv":
            found[f"layers.{i}.{name}.weight"] = (c.hidden, c.hidden)
    if not c.tied:
        found["head.weight"] = (c.hidden, V)
    return found


QKV = tuple(f"layers.{{}}.{name}.weight" for name in "qkv")


def table(write=False, **options):
    rows = [
        ("model.wte", "embedding.weight"),
        ("model.h.{}.qkv", QKV, Split(3), Transpose()),
        ("model.h.{}.fc", "layers.{}.up.weight", Transpose()),
        ("model.norm", "norm.weight"),
        ("lm_head", "head.weight", Tie("embedding.weight", write=write), Transpose()),
    ]
    options = {"ignore": [r"model\.h\.\d+\.mask"], "prefix": "model.", **options}
    return Table(rows, shapes, name="theirs", **options)


def random(shapes, dtype=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def theirs(c, **more):
    found = {"model.wte": (V, H), "model.norm": (H,)}
    for i in range(c.num_layers):
        found |= {f"model.h.{i}.qkv": (3 * H, H), f"model.h.{i}.fc": (F, H)}
    if not c.tied:
        found["lm_head"] = (V, H)
    return random(found | more)


def problems(call):
    with pytest.raises(CheckpointError) as caught:
        call()
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


class Counting(Memory):
    """Counts what is read, and what is alive at the same time."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.reads = []

    def read(self, name):
        self.reads.append(name)
        return super().read(name).copy()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [0, 1, 12])
def test_there_and_back(tied, layers):
    c = config(tied=tied, num_layers=layers)
    arrays = theirs(c)
    ours = dict(stream(table().load(Memory(arrays), c)))
    assert {name: a.shape for name, a in ours.items()} == shapes(c)
    assert_same(table().save(Memory(ours), c), arrays)


def test_values_go_where_they_belong():
    c = config(tied=False)
    arrays = theirs(c)
    ours = dict(stream(table().load(Memory(arrays), c)))
    for i in range(2):
        for n, name in enumerate("qkv"):
            expected = arrays[f"model.h.{i}.qkv"][n * H : (n + 1) * H].T
            assert np.array_equal(ours[f"layers.{i}.{name}.weight"], expected)
    assert np.array_equal(ours["head.weight"], arrays["lm_head"].T)


def test_names_shapes_and_types_are_known_before_anything_is_read():
    source = Counting({k: v.astype(np.float16) for k, v in theirs(config()).items()})
    ours = table().load(source, config())
    assert {name: spec.shape for name, spec in ours.specs.items()} == shapes(config())
    assert {spec.dtype for spec in ours.specs.values()} == {np.dtype(np.float16)}
    back = table().save(ours, config())
    assert back.specs == source.specs
    assert source.reads == []


def test_each_row_is_read_once_and_layer_after_layer():
    source = Counting(theirs(config(tied=False)))
    for _ in stream(table().load(source, config(tied=False))):
        pass
    assert sorted(source.reads) == sorted(source.specs)
    layers = [name[8] for name in source.reads if name.startswith("model.h.")]
    assert layers == sorted(layers)


def test_tables_chain_without_reading_a_row_twice():
    c = config()
    apart = Table(
        [(f"{n}_{{}}", f"layers.{{}}.{n}.weight", Transpose()) for n in "qkv"]
        + [("up_{}", "layers.{}.up.weight"), ("e", "embedding.weight"), ("n", "norm.weight")],
        shapes,
        name="apart",
    )
    source = Counting(theirs(c))
    chained = apart.save(table().load(source, c), c)
    again = table().save(apart.load(Memory(dict(stream(chained))), c), c)
    assert_same(again, {k: source._arrays[k] for k in again.specs})
    assert len(source.reads) == len(set(source.reads))


def test_any_tensor_can_be_read_in_any_order():
    c = config()
    arrays = theirs(c)
    ours = table().load(Memory(arrays), c)
    expected = dict(stream(ours))
    for name in sorted(ours.specs, reverse=True):
        assert np.array_equal(ours.read(name), expected[name])
        assert np.array_equal(ours.read(name), expected[name])


def test_the_prefix_may_be_missing_and_comes_back_as_it_was():
    c = config(tied=False)
    short = {name.removeprefix("model."): a for name, a in theirs(c).items()}
    ours = table().load(Memory(short), c)
    assert_same(table().save(ours, c), short)
    assert_same(table().save(ours, c, prefix="model."), theirs(c))
    assert_same(table().save(table().load(Memory(theirs(c)), c), c, prefix=""), short)
    plain = Memory(dict(stream(ours)))
    assert_same(table().save(plain, c), theirs(c))


def test_a_tensor_under_both_spellings_is_reported():
    arrays = theirs(config()) | {"wte": np.zeros((V, H), np.float32)}
    (line,) = problems(lambda: table().load(Memory(arrays), config()))
    assert "1 unknown tensor: wte;" in line


def test_ignored_names_are_left_out_with_or_without_prefix():
    c = config()
    masks = {"model.h.0.mask": np.ones((1, 4, 4), bool), "h.1.mask": np.ones(3)}
    ours = table().load(Memory(theirs(c) | masks), c)
    assert set(ours.specs) == set(shapes(c))
    (line,) = problems(lambda: table().load(Memory(theirs(c) | {"model.h.0.mask2": np.ones(1)}), c))
    assert "model.h.0.mask2" in line


def test_one_report_counts_everything_and_names_a_few():
    c = config()
    arrays = theirs(c)
    missing = ["model.wte", "model.h.1.fc"]
    for name in missing:
        del arrays[name]
    arrays["model.norm"] = np.zeros(H + 1, np.float32)
    arrays["model.h.0.qkv"] = np.zeros((3 * H, H + 2), np.float32)
    unknown = [f"model.h.{i}.fc" for i in range(2, 90)] + ["weird"]
    arrays |= {name: np.zeros((F, H), np.float32) for name in unknown}
    lines = problems(lambda: table().load(Memory(arrays, "some/file"), c))
    assert len(lines) == 3
    assert all(line.startswith("some/file: ") and "theirs layout" in line for line in lines)
    assert "2 missing tensors" in lines[0] and all(name in lines[0] for name in missing)
    assert f"89 unknown tensors: {', '.join(unknown[:3])} and 86 more; " in lines[1]
    assert "model.norm is [9] and must be [8]" in lines[2]
    assert "model.h.0.qkv is [24, 10] and must be [24, 8]" in lines[2]


def test_missing_names_are_spelled_as_the_file_spells():
    short = {name.removeprefix("model."): a for name, a in theirs(config()).items()}
    del short["norm"]
    (line,) = problems(lambda: table().load(Memory(short), config()))
    assert "missing tensor: norm;" in line


def test_a_transposed_matrix_is_told_in_their_shape():
    arrays = theirs(config())
    arrays["model.h.0.fc"] = np.zeros((H, F), np.float32)
    (line,) = problems(lambda: table().load(Memory(arrays), config()))
    assert "model.h.0.fc is [8, 12] and must be [12, 8]" in line


@pytest.mark.parametrize("name", ["model.h.0.SCB", "model.h.1.qkv.weight.absmax", "wte.qweight"])
def test_weights_of_few_bits_are_told_in_one_line(name):
    arrays = theirs(config()) | {name: np.zeros(3), f"{name}.scales": np.zeros(3)}
    del arrays["model.norm"]
    (line,) = problems(lambda: table().load(Memory(arrays), config()))
    assert f"holds quantized weights ({name} and 1 more beside them); must hold float32" in line
    assert "missing" not in line


def test_nothing_at_all_is_all_missing():
    (line,) = problems(lambda: table().load(Memory({}), config()))
    assert "6 missing tensors" in line


def test_absent_parameters_are_left_out():
    c = config(tied=False)
    arrays = theirs(c)
    del arrays["lm_head"]
    ours = table().load(Memory(arrays), c, absent=["head.weight"])
    assert set(ours.specs) == set(shapes(c)) - {"head.weight"}
    problems(lambda: table().load(Memory(arrays), c, absent=["norm.weight"]))
    arrays["model.h.0.qkv"] = arrays["model.norm"]
    (line,) = problems(lambda: table().load(Memory(arrays), c, absent=["head.weight"]))
    assert "wrongly shaped" in line


def test_spare_parameters_are_passed_over():
    """The head of another task, also one that differs from the table that it would be tied to."""
    c = config()
    arrays = theirs(config(tied=False))
    assert "differs from" in problems(lambda: dict(stream(table().load(Memory(arrays), c))))[0]
    ours = table().load(Memory(arrays), c, spare=["head.weight"])
    assert set(ours.specs) == set(shapes(c)) and len(dict(stream(ours))) == len(shapes(c))
    native = dict(stream(ours)) | {"head.weight": np.zeros(3)}
    assert set(Native(shapes).load(Memory(native), c, spare=["head.weight"]).specs) == set(
        shapes(c)
    )
    (line,) = problems(lambda: Native(shapes).load(Memory(native), c))
    assert "unknown tensor: head.weight" in line


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_a_tied_head_may_be_there_if_it_is_equal(dtype):
    c = config()
    arrays = {name: cast(a, np.dtype(dtype)) for name, a in theirs(c).items()}
    arrays["lm_head"] = arrays["model.wte"].copy()
    ours = dict(stream(table().load(Memory(arrays), c)))
    assert set(ours) == set(shapes(c))
    assert "lm_head" not in table().save(Memory(ours), c).specs
    repeated = dict(stream(table(write=True).save(Memory(ours), c)))
    assert_same(repeated, arrays)
    arrays["lm_head"] = arrays["lm_head"].copy()
    arrays["lm_head"][3, 3] = arrays["lm_head"][3, 4]
    lazy = table().load(Memory(arrays, "f"), c)
    (line,) = problems(lambda: dict(stream(lazy)))
    assert line.startswith("f: lm_head differs from model.wte") and "tie_word_embeddings" in line


def test_a_tied_head_with_nan_is_still_equal_to_itself():
    arrays = theirs(config())
    arrays["model.wte"][0, 0] = np.nan
    arrays["lm_head"] = arrays["model.wte"].copy()
    dict(stream(table().load(Memory(arrays), config())))


def test_an_untied_head_must_be_there():
    arrays = theirs(config())
    (line,) = problems(lambda: table().load(Memory(arrays), config(tied=False)))
    assert "1 missing tensor: lm_head;" in line


def test_tensors_that_are_joined_must_have_one_type():
    ours = random(shapes(config()))
    ours["layers.1.k.weight"] = ours["layers.1.k.weight"].astype(np.float16)
    (line,) = problems(lambda: table().save(Memory(ours), config()))
    assert "layers.1.k.weight float16" in line and "one type" in line


def test_saving_needs_exactly_our_parameters():
    ours = random(shapes(config()))
    ours["extra"] = ours.pop("norm.weight")
    ours["embedding.weight"] = ours["embedding.weight"].T
    lines = problems(lambda: table().save(Memory(ours), config()))
    assert "norm.weight" in lines[0] and "extra" in lines[1] and "[8, 10]" in lines[2]


def test_the_last_layer_may_have_its_own_names():
    """As PanGu-alpha: L - 1 plain blocks, then a query layer, whose number comes after theirs."""

    def sizes(c):
        names = [f"layers.{i}.w" for i in range(c.num_layers - 1)] + ["query.w"]
        return {name: (2, 3) for name in names}

    rows = [("h.{}.fc", "layers.{}.w", Transpose()), ("h.{last}.fc", "query.w", Transpose())]
    pangu = Table(rows, sizes, name="port", layers=lambda c: c.num_layers - 1)
    arrays = random({f"h.{i}.fc": (3, 2) for i in range(4)})
    c = config(num_layers=4)
    ours = dict(stream(pangu.load(Memory(arrays), c)))
    assert np.array_equal(ours["query.w"], arrays["h.3.fc"].T)
    assert_same(pangu.save(Memory(ours), c), arrays)


def test_fused_layers_of_the_other_families():
    """GLM2: unequal q, k, v in pairs, gate and up in one; and a fused tensor of ours."""
    c = SimpleNamespace(num_layers=2, heads=4, groups=2, head=8, hidden=32, ffn=12)
    q, kv = c.heads * c.head, c.groups * c.head

    def sizes(c):
        found = {}
        for i in range(c.num_layers):
            widths = {"q": q, "k": kv, "v": kv}
            found |= {f"layers.{i}.{n}.weight": (c.hidden, width) for n, width in widths.items()}
            found |= {f"layers.{i}.{n}.bias": (width,) for n, width in widths.items()}
            found |= {f"layers.{i}.{n}.weight": (c.hidden, c.ffn) for n in ("gate", "up")}
            found[f"layers.{i}.fused.weight"] = (2 * c.ffn, c.hidden)
        return found

    split = Split(lambda c: [c.heads * c.head, *[c.groups * c.head] * 2])
    rope = PermuteRope(lambda c: c.head, rotary_dim=lambda c: c.head // 2)
    turn = Each(rope, rope, None)
    rows = [
        ("l.{}.qkv.w", tuple(f"layers.{{}}.{n}.weight" for n in "qkv"), split, turn, Transpose()),
        ("l.{}.qkv.b", tuple(f"layers.{{}}.{n}.bias" for n in "qkv"), split, turn),
        ("l.{}.gu", ("layers.{}.gate.weight", "layers.{}.up.weight"), Split(2), Transpose()),
        (("l.{}.w1", "l.{}.w3"), "layers.{}.fused.weight", Concat(2)),
    ]
    glm = Table(rows, sizes, name="glm")
    their = {}
    for i in range(2):
        their |= {f"l.{i}.qkv.w": (q + 2 * kv, 32), f"l.{i}.qkv.b": (q + 2 * kv,)}
        their |= {f"l.{i}.gu": (24, 32), f"l.{i}.w1": (12, 32), f"l.{i}.w3": (12, 32)}
    arrays = random(their)
    ours = dict(stream(glm.load(Memory(arrays), c)))
    assert_same(glm.save(Memory(ours), c), arrays)
    order = [0, 2, 1, 3, 4, 5, 6, 7]
    key = arrays["l.1.qkv.w"][q : q + kv].reshape(2, 8, 32)[:, order].reshape(kv, 32)
    assert np.array_equal(ours["layers.1.k.weight"], key.T)
    assert np.array_equal(ours["layers.1.v.bias"], arrays["l.1.qkv.b"][q + kv :])
    assert np.array_equal(ours["layers.0.up.weight"], arrays["l.0.gu"][12:].T)


def test_native_is_every_name_its_own():
    ours = random(shapes(config()))
    native = Native(shapes)
    assert_same(native.load(Memory(ours), config()), ours)
    (line,) = problems(
        lambda: native.load(Memory({**ours, "extra": ours["norm.weight"]}), config())
    )
    assert "1 unknown tensor: extra" in line and "native" in line


def test_recognised_counts_names_of_any_depth():
    names = [*theirs(config(num_layers=40)), "wte", "model.h.0.mask", "h.7.fc", "xmodel.wte"]
    assert table().recognised(names) == 2 + 80 + 2
    assert table().recognised([]) == 0
