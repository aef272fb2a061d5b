"""The benchmark's models, as files of several layouts, and their attention in blocks."""

from __future__ import annotations

import numpy as np
import pytest

TINY = ("tiny", 1, 16, 2, 48, 40, 32)


def _tiny(kind):
    """Of the family that the benchmark measures, but with small sizes."""
    import weights

    return type(weights.MODELS[kind])(*TINY)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_model_is_one_that_we_read(bench, tmp_path, kind):
    """The benchmark's random weights load, and have the published names and shapes."""
    from lm_core import AutoModel

    _tiny(kind).make(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    assert model.spec_name == kind and model.config.num_layers == 1
    rows = model.generate([[1, 2, 3]], max_new_tokens=4, do_sample=False, eos_token_id=[])
    assert len(rows[0]) == 7


def test_what_a_decoding_step_reads(bench):
    import weights

    gpt2, llama = weights.MODELS["gpt2"], weights.MODELS["llama"]
    assert gpt2.weight_bytes == 4 * (124_439_808 - 1024 * 768)
    block = 4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024
    assert llama.weight_bytes == 4 * (8 * block + 1024 + 32000 * 1024)


def test_every_weight_has_one_place_in_a_gguf_file(bench):
    for kind, count in (("gpt2", 16), ("llama", 12)):
        model = _tiny(kind)
        tensors = {name: np.zeros(shape) for name, shape in model.shapes().items()}
        found = dict(model.for_gguf(name, array) for name, array in tensors.items())
        assert len(found) == len(tensors) == count
        inner, hidden = found["blk.0.ffn_down.weight"].shape[::-1]
        assert (hidden, inner) == (16, 48) and "token_embd.weight" in found


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
    _tiny("llama").make(tmp_path)
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

    _tiny("gpt2").make(tmp_path)
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
