"""Comparison with a recorded reference: weights in the original layout and what came out of them.

A case is a directory that holds `config.json`, weight files, and `golden.npz` with input_ids,
logits, labels, loss, grad_names, grad_l2, greedy_prompt and greedy_tokens. Labels are like
input_ids (not shifted); -100 is ignored. With a folder `adapter` in it, as PEFT writes it, the
results are those of the model with that adapter, and the gradients are the adapter's.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lm_core.checkpoint.layout import Tensors
    from lm_core.nn.decoder import CausalLM
    from lm_core.nn.network import Network


@dataclass(frozen=True)
class Tolerances:
    """How far two implementations of one model may be apart in float32.

    Loosening one needs a reason and a review.
    """

    logits: float = 2e-5
    """Absolute, on logits of size 1: about 40 times the rounding error of the reference itself."""
    loss: float = 5e-6
    """Absolute, on a loss of about ln(vocabulary)."""
    gradient_relative: float = 1e-4
    gradient_absolute: float = 1e-6
    """On the L2 norm of each weight's gradient."""
    cached: float = 2e-5
    """Logits with the key-value cache against those of the whole sequence."""
    parallel: float = 1e-5
    """Losses, gradient norms, weights and logits of several processes against those of one."""


TOLERANCES = Tolerances()


def assert_same(
    actual: Mapping[str, np.ndarray] | Tensors, expected: Mapping[str, np.ndarray] | Tensors
) -> None:
    """Equal names, types, shapes and bits, in any order."""
    found = differences(actual, expected)
    assert not found, "\n".join(found)


def differences(
    actual: Mapping[str, np.ndarray] | Tensors, expected: Mapping[str, np.ndarray] | Tensors
) -> list[str]:
    """A line for each array that only one side has, or whose type, shape or bits are not equal."""
    from lm_core.checkpoint.layout import Memory

    a, b = (Memory(side) if isinstance(side, Mapping) else side for side in (actual, expected))
    lines = [f"{name}: is there; must not be" for name in a.specs if name not in b.specs]
    lines += [f"{name}: is missing" for name in b.specs if name not in a.specs]
    both = [name for name in b.specs if name in a.specs]
    compared = (_difference(a.read(name), b.read(name)) for name in both)
    return lines + [f"{name}: {text}" for name, text in zip(both, compared, strict=True) if text]


def _difference(actual: np.ndarray, expected: np.ndarray) -> str:
    if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        kinds = [f"{array.dtype} {list(array.shape)}" for array in (actual, expected)]
        return "is {}; must be {}".format(*kinds)
    bits = f"u{actual.dtype.itemsize}"
    other = actual.view(bits) != expected.view(bits)
    if not other.any():
        return ""
    place = tuple(np.argwhere(other)[0].tolist())
    return (
        f"{other.sum()} of {other.size} numbers differ, the first at {list(place)}: "
        f"is {actual[place]}; must be {expected[place]}"
    )


def golden_cases(case: Path) -> list[str]:
    """The weight files of a case; each must give the recorded results."""
    return sorted(path.name for path in case.glob("*.safetensors"))


def checkpoint_of(case: Path, weight_file: str, directory: Path) -> Path:
    """A Hugging Face-layout directory with one of the weight files of a case."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(case / "config.json", directory / "config.json")
    shutil.copyfile(case / weight_file, directory / "model.safetensors")
    return directory


def gradients(
    built: Network, input_ids: np.ndarray, labels: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean loss and its gradient for every trained parameter, by our names.

    Labels are like input_ids.
    """
    from mindspore import ParameterTuple, Tensor

    from lm_core.train.step import Gradients

    parameters = {n: p for n, p in built.named_parameters().items() if p.requires_grad}
    ids, targets = np.ascontiguousarray(input_ids[:, :-1]), np.ascontiguousarray(labels[:, 1:])
    given = Tensor(ids.astype(np.int32)), Tensor(targets.astype(np.int32))
    # A cell, because MindSpore keeps the graphs of functions for ever.
    step = Gradients(built, ParameterTuple(parameters.values()))
    total, count, found = step(*given, Tensor(np.float32(1.0)))
    number = float(count.asnumpy())
    gradients = zip(parameters, found, strict=True)
    return float(total.asnumpy()) / number, {n: g.asnumpy() / number for n, g in gradients}


def check_forward(built: CausalLM, golden: np.lib.npyio.NpzFile) -> None:
    """Logits and loss, and the loss method against the logits."""
    from mindspore import Tensor

    input_ids = golden["input_ids"].astype(np.int32)
    logits = built(Tensor(input_ids)).asnumpy()
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=TOLERANCES.logits)
    loss = float(built.loss(input_ids, golden["labels"]).asnumpy())
    np.testing.assert_allclose(loss, golden["loss"], rtol=0, atol=TOLERANCES.loss)


def check_gradients(built: CausalLM, golden: np.lib.npyio.NpzFile) -> None:
    """The norm of every weight's gradient, under the original names."""
    loss, found = gradients(built, golden["input_ids"], golden["labels"])
    np.testing.assert_allclose(loss, golden["loss"], rtol=0, atol=TOLERANCES.loss)
    theirs = _under_their_names(built, found)
    names = [str(name).replace(".default.weight", ".weight") for name in golden["grad_names"]]
    assert set(names) == set(theirs.specs), sorted(set(names) ^ set(theirs.specs))
    actual = [np.sqrt(np.sum(np.square(theirs.read(name), dtype=np.float64))) for name in names]
    np.testing.assert_allclose(
        actual,
        golden["grad_l2"],
        rtol=TOLERANCES.gradient_relative,
        atol=TOLERANCES.gradient_absolute,
        err_msg=", ".join(names),
    )


def _under_their_names(built: CausalLM, found: dict[str, np.ndarray]) -> Tensors:
    from lm_core import spec
    from lm_core.checkpoint.layout import Memory
    from lm_core.peft import layout

    family, lora = spec.find(built.spec_name), built.config.pet_config
    if lora is None:
        return family.tables["hf"].save(Memory(found), built.config)
    arrays, _ = layout.save(found, family, built.config, lora, "peft")
    return Memory(arrays)


def check_greedy(built: CausalLM, golden: np.lib.npyio.NpzFile) -> None:
    """The most likely tokens, with the cache, exactly."""
    prompt = golden["greedy_prompt"].reshape(-1).astype(np.int32)
    expected = golden["greedy_tokens"].reshape(-1)
    new = len(expected) - len(prompt)
    tokens = built.generate([prompt], max_new_tokens=new, do_sample=False, eos_token_id=[])[0]
    np.testing.assert_array_equal(tokens, expected)
