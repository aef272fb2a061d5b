"""The benchmark's models, as files of several layouts, and their attention in blocks."""

from __future__ import annotations

import numpy as np
import pytest

TINY = ("tiny", 1, 16, 2, 48, 40, 32)


KINDS = ["gpt2", "llama", "glm2", "baichuan2", "pangualpha"]


def _tiny(kind):
    """Of the family that the benchmark measures, but with small sizes."""
    import models

    # Two heads share keys, and two pairs of a head turn.
    sizes = ("tiny", 1, 32, 4, 48, 40, 32) if kind == "glm2" else TINY
    return type(models.MODELS[kind])(*sizes)


def _write(kind, folder):
    own = _tiny(kind)
    tensors = own.draw()
    own.write(folder, tensors)
    return own, tensors


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_one_that_we_read(bench, tmp_path, kind):
    """The benchmark's random weights load, and have the published names and shapes."""
    from lm_core import AutoModel

    _write(kind, tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    assert model.spec_name == kind and model.config.num_layers == 1
    rows = model.generate([[1, 2, 3]], max_new_tokens=4, do_sample=False, eos_token_id=[])
    assert len(rows[0]) == 7


def test_what_a_decoding_step_reads(bench):
    from models import MODELS

    gpt2, llama = MODELS["gpt2"], MODELS["llama"]
    assert gpt2.weight_bytes == 4 * (124_439_808 - 1024 * 768)
    block = 4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024
    assert llama.weight_bytes == 4 * (8 * block + 1024 + 32000 * 1024)
    assert MODELS["baichuan2"].weight_bytes == llama.weight_bytes
    # Of 1024 with 2 of 8 heads for keys and values, whose biases with those of queries are 1536.
    block = 2 * 1024 * (1024 + 256) + 1536 + 3 * 1024 * 3424 + 2 * 1024
    assert MODELS["glm2"].weight_bytes == 4 * (8 * block + 1024 + 32000 * 1024)
    block = 12 * 1024**2 + 13 * 1024
    assert MODELS["pangualpha"].weight_bytes == 4 * (8 * block + 2 * 1024 + 40000 * 1024)


def test_every_weight_has_one_place_in_a_gguf_file(bench):
    for kind, count in (("gpt2", 16), ("llama", 12), ("glm2", 14)):
        model = _tiny(kind).peer()
        tensors = {name: np.zeros(shape) for name, shape in model.shapes().items()}
        found = dict(model.for_gguf(name, array) for name, array in tensors.items())
        assert len(found) == len(tensors) == count
        inner, hidden = found["blk.0.ffn_down.weight"].shape[::-1]
        assert (hidden, inner) == (model.hidden, 48) and "token_embd.weight" in found


def _normed(x, weight):
    return weight * x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)


def _turned(x, pairs, apart):
    """Heads [S, N, D] of which so many pairs turn: number `apart` behind, or the neighbour."""
    step = 1 if apart else 2
    first = np.arange(pairs) * step
    second = first + (apart or 1)
    angles = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(pairs) / pairs)
    turned = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles)[:, None]
    found = x.copy()
    found[..., first], found[..., second] = turned.real, turned.imag
    return found


def _logits(peer, tensors, ids):
    """What transformers computes of one block of Llama or GLM, written from its modules."""
    at = {name.removesuffix(".weight"): array for name, array in tensors.items()}
    block, size = "model.layers.0.", peer.hidden // peer.heads
    x = at["model.embed_tokens"][ids]
    y = _normed(x, at[f"{block}input_layernorm"])
    parts = {}
    for name in "qkv":
        bias = tensors.get(f"{block}self_attn.{name}_proj.bias", 0.0)
        flat = y @ at[f"{block}self_attn.{name}_proj"].T + bias
        parts[name] = flat.reshape(len(ids), -1, size)
    is_glm = peer.architecture == "chatglm"
    turn = (size // 4, 0) if is_glm else (size // 2, size // 2)
    q, k = _turned(parts["q"], *turn), _turned(parts["k"], *turn)
    k, v = (np.repeat(one, peer.heads // one.shape[1], axis=1) for one in (k, parts["v"]))
    scores = np.einsum("snd,tnd->nst", q, k) / np.sqrt(size)
    scores = np.exp(np.where(np.tri(len(ids)), scores, -np.inf))
    mixed = np.einsum("nst,tnd->snd", scores / scores.sum(-1, keepdims=True), v)
    x = x + mixed.reshape(len(ids), -1) @ at[f"{block}self_attn.o_proj"].T
    y = _normed(x, at[f"{block}post_attention_layernorm"])
    if is_glm:
        gate, up = np.split(y @ at[f"{block}mlp.gate_up_proj"].T, 2, axis=-1)
    else:
        gate, up = (y @ at[f"{block}mlp.{name}_proj"].T for name in ("gate", "up"))
    x = x + (gate / (1 + np.exp(-gate)) * up) @ at[f"{block}mlp.down_proj"].T
    return _normed(x, at["model.norm"]) @ at["lm_head"].T


@pytest.mark.parametrize("kind", ["llama", "glm2", "baichuan2"])
def test_peers_are_given_what_computes_the_same(bench, tmp_path, kind):
    from mindspore import Tensor

    from lm_core import AutoModel

    own, tensors = _write(kind, tmp_path)
    louder = {name: 4 * array for name, array in tensors.items()}  # or attention hardly counts
    own.write(tmp_path, louder)
    ids = np.array([[7, 3, 31, 8, 3, 12]], np.int32)
    found = AutoModel.from_pretrained(tmp_path)(Tensor(ids)).asnumpy()[0]
    peer, theirs = own.peer(), own.for_peer(louder)
    assert {name: array.shape for name, array in theirs.items()} == peer.shapes()
    np.testing.assert_allclose(found, _logits(peer, theirs, ids[0]), rtol=1e-4, atol=1e-4)


def test_peers_of_pangu_alpha_have_its_sizes(bench):
    own = _tiny("pangualpha")
    tensors = own.draw()
    theirs = own.for_peer(tensors)
    count, other = (sum(a.size for a in kind.values()) for kind in (tensors, theirs))
    assert count - other == 32 * 16 and not own.same_tokens  # the table of the query layer
    assert "transformer.wqe.weight" in tensors and own.peer().config()["model_type"] == "gpt2"


def test_each_contender_reads_its_own_files(bench, tmp_path, monkeypatch):
    """A peer of the same names reads ours, another its own."""
    import json

    import stand

    for kind in ("llama", "baichuan2"):
        monkeypatch.setitem(stand.MODELS, kind, _tiny(kind))
    found = stand.Stand(tmp_path, ["lm", "transformers"], 1)
    assert found.folder("llama") == found.folder("llama", "transformers")
    types = [
        json.loads((found.folder("baichuan2", name) / "config.json").read_text())["model_type"]
        for name in ("transformers", "lm")
    ]
    assert types == ["llama", "baichuan"]


class Trainer:
    """A worker whose losses are known."""

    def __init__(self, *losses: float) -> None:
        self.losses = iter((*losses, 0.0, 0.0))

    def ask(self, method: str, **arguments):
        return {"loss": next(self.losses), "seconds": 0.5}


@pytest.mark.parametrize("same", [2, 1, 0])
def test_losses_agree_as_far_as_the_same_is_computed(bench, tmp_path, monkeypatch, same):
    driver, _ = bench
    import stand
    import training

    monkeypatch.setattr(stand.time, "sleep", lambda seconds: None)
    own = training.Training(tmp_path, ["lm"], 1)

    def measured(*peer: float) -> dict:
        trainers = {"lm": Trainer(3.0, 2.0), "peer": Trainer(*peer)}
        return own._compare_training(trainers, [[1, 2, 3]], same)

    values = (3.0 + (same < 1), 2.0 + (same < 2))
    assert measured(*values) == {"lm": [4.0], "peer": [4.0]}
    if same:
        values = (3.1, 2.0) if same == 1 else (3.0, 2.1)
        with pytest.raises(driver.ContenderError, match="losses of the first steps differ"):
            measured(*values)


@pytest.mark.slow
def test_graphs_in_files_give_the_tokens_of_the_model(ours, tmp_path):
    _write("gpt2", tmp_path / "model")
    ours.load(str(tmp_path / "model"))
    expected = ours.decode([[1, 2, 3]], 4)["tokens"]
    ours.export(str(tmp_path / "mindir"), length=7)
    ours.load_graphs(str(tmp_path / "mindir"))
    assert type(ours.model).__name__ == "ExportedModel"
    assert ours.decode([[1, 2, 3]], 4)["tokens"] == expected


def test_rotating_neighbours_gives_what_rotating_halves_gave(bench):
    """llama.cpp turns numbers 2 j and 2 j + 1 of a head, Hugging Face j and j + D / 2."""
    model, rng = _tiny("llama"), np.random.default_rng(0)
    x, theirs, halves = rng.normal(size=(2, 16)), [], []
    for position, name in ((3, "q"), (7, "k")):
        full = f"model.layers.0.self_attn.{name}_proj.weight"
        weight = rng.normal(size=(16, 16))
        renamed, permuted = model.for_gguf(full, weight)
        assert renamed == f"blk.0.attn_{name}.weight"
        turn = np.exp(1j * position * 100.0 ** -np.arange(4))
        heads = (weight @ x[position // 7]).reshape(2, 8)
        halves.append((heads[:, :4] + 1j * heads[:, 4:]) * turn)
        heads = (permuted @ x[position // 7]).reshape(2, 8)
        theirs.append((heads[:, ::2] + 1j * heads[:, 1::2]) * turn)
    scores = [(q * k.conj()).real.sum(-1) for q, k in (theirs, halves)]
    np.testing.assert_allclose(*scores, rtol=1e-12)
    other = "model.layers.0.self_attn.v_proj.weight"
    np.testing.assert_array_equal(model.for_gguf(other, weight)[1], weight)


@pytest.fixture
def ours(bench):
    from contenders.lm import Lm

    return Lm()


def test_blocks_are_read_where_they_are_asked_for(ours, tmp_path):
    _write("llama", tmp_path)
    rows, found = [list(range(12))], []
    for asked in (True, False):
        ours.load(str(tmp_path), blocks=asked)
        attention = ours.model.layers[0].attention
        assert attention.in_blocks(12) is attention.in_blocks(16384) is asked
        found.append(ours.forward(rows)["tokens"])
    assert found[0] == found[1] and np.shape(found[0]) == (1, 8)


def test_clients_of_a_server_wait_for_whole_answers(ours, tmp_path):
    import driver
    import serving

    _write("gpt2", tmp_path)
    ours.load(str(tmp_path))
    port = ours.serve(batch=2, longest=16)
    prompts = [[number, 5] for number in range(5)]
    assert 0 < serving.seconds(port, prompts, 4) < 60
    assert np.shape(ours.decode(prompts, 4)["tokens"]) == (5, 4)
    with pytest.raises(driver.ContenderError, match=r"serve: gave \[6\] tokens; must be 9 each"):
        serving.seconds(port, [[1] * 10], 9)  # there is room for 16
    with pytest.raises(driver.ContenderError, match="has 16 tokens; must have at most 15"):
        serving.seconds(port, [[1] * 16], 1)


class Blocks:
    """A worker that takes 2 GB with blocks and 5 GB without."""

    def __init__(self, blocks: bool) -> None:
        self.own, self.asked = blocks, []

    def ask(self, method: str, **arguments):
        self.asked.append(method)
        if method == "peak_memory":
            return 2.5e9 if self.own else 5.5e9
        seconds = {"seconds": 0.5, "loss": 1.0, "tokens": [[1]]}
        return {"memory": 0.5e9, "start_training": None}.get(method, seconds)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("trains", [False, True])
def test_what_would_not_fit_is_said_and_not_run(bench, tmp_path, monkeypatch, trains):
    _, report = bench
    import bench as rounds
    import blocks
    import rows

    monkeypatch.setattr(blocks, "MOST", 10e9)
    started = []

    def start(self, stack, name, model, blocks):
        started.append(Blocks(blocks))
        return started[-1]

    monkeypatch.setattr(rounds.Bench, "worker", start)
    own = rounds.Bench(tmp_path, ["lm"], 1)
    kind = "training" if trains else "forward"
    short = own.measure(f"llama_blocks_{kind}_2k_memory")
    assert short["values"] == {"lm": [2.0], "lm, without blocks": [5.0]}
    assert [worker.own for worker in started] == [True, False]
    assert ("train" in started[0].asked) == trains != ("forward" in started[0].asked)
    assert own.measure(f"llama_blocks_{kind}_2k")["values"]["lm"] == [4096.0]
    started.clear()
    long = own.measure(f"llama_blocks_{kind}_16k_memory")
    assert [worker.own for worker in started] == [True]
    title = rows.ROWS[f"llama_blocks_{kind}_16k_memory"].title
    size = 21 if trains else 11  # 20 and 10 squares of 16,384 numbers, 4 bytes each
    line = f"| {title} | lm, without blocks | not run: would take {size} GB | | | 2 GB | | |"
    assert line in report.table({"long": long})
