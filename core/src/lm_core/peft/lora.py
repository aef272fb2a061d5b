"""LoRA (Hu et al. 2021): a frozen linear layer and beside it a product of two thin matrices.

Where tensor parallelism splits the layer, it splits the factor on the same side: lora_b of layers
that are split by columns, lora_a of those split by rows. Every rank has all of the other factor,
and its gradient is the sum of what the ranks find.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from lm_core.checkpoint import hub, io
from lm_core.checkpoint.layout.tensors import Memory, Tensors
from lm_core.checkpoint.parts import Sharded
from lm_core.config.model import LoraConfig
from lm_core.errors import CheckpointError, ConfigError
from lm_core.log import get_logger
from lm_core.nn import init
from lm_core.nn.dropout import Dropout, dropout_key
from lm_core.nn.linear import Linear
from lm_core.parallel import backend
from lm_core.parallel.partition import WHOLE, Cut, Partition
from lm_core.peft import files, layout, targets

if TYPE_CHECKING:
    from lm_core.nn.network import Network

_FIRST_SITE = 1 << 16
"""Numbers of the adapters' dropouts, past those of any model."""


class LowRank(nn.Cell):
    """`scale * (dropout(x) @ a) @ b`, which keeps nothing but x for its backward pass.

    The mask is computed again: it is a function of the step, and larger than all else here.

    Args:
        config: alpha, dropout, type of the products.
        site: number of the Dropout.
        own_columns: of x, as of Dropout.
    """

    def __init__(
        self, config: LoraConfig, site: int, own_columns: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.dropout = Dropout(config.lora_dropout, site, own_columns=own_columns)
        self.scale = config.scale
        self.compute_type = backend.compute_dtype(config.compute_dtype)
        self.product = ops.MatMul()
        self.product_at = ops.MatMul(transpose_a=True)
        self.product_bt = ops.MatMul(transpose_b=True)

    def inputs(self, x: Tensor, key: Tensor) -> Tensor:
        """x: [T, in]. Returns what is multiplied."""
        return self.dropout(x, key).astype(self.compute_type)

    def thin(self, inputs: Tensor, a: Tensor) -> Tensor:
        """Returns [T, r]."""
        return self.product(inputs, a.astype(self.compute_type)) * self.scale

    def construct(self, x: Tensor, a: Tensor, b: Tensor, key: Tensor) -> Tensor:
        """x: [T, in]; a: [in, r]; b: [r, out]; key: of `dropout_key`. Returns [T, out] as x is."""
        y = self.product(self.thin(self.inputs(x, key), a), b.astype(self.compute_type))
        return y.astype(x.dtype)

    def bprop(
        self, x: Tensor, a: Tensor, b: Tensor, key: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, a and b."""
        # Else these would be found equal to those of the forward pass, and be kept from there.
        x, key = ops.depend(x, dout), ops.depend(key, dout)
        inputs = self.inputs(x, key)
        dy = dout.astype(self.compute_type)
        d_thin = self.product_bt(dy, b.astype(self.compute_type)) * self.scale
        d_a = self.product_at(inputs, d_thin).astype(a.dtype)
        d_b = self.product_at(self.thin(inputs, a), dy).astype(b.dtype)
        d_inputs = self.product_bt(d_thin, a.astype(self.compute_type)).astype(x.dtype)
        return self.dropout(d_inputs, key), d_a, d_b, ops.zeros_like(key)


class Lora(nn.Cell):
    """An adapter of one layer; its output is 0 at the start because lora_b is.

    Args:
        linear: the layer beside which it stands.
        name: of that layer, for the names and initial values of the parameters.
        config: rank, alpha, dropout, types.
        model: gives the seed and step of the dropout masks.
        site: number of the Dropout.
        seed: of the initial values.
    """

    def __init__(
        self, linear: Linear, name: str, config: LoraConfig, model: Network, site: int, seed: int
    ) -> None:
        super().__init__(auto_prefix=False)
        inputs, outputs = linear.weight.shape
        kind = backend.DTYPES[config.param_init_type]
        by_rows = linear.cut.dim == 0
        whole = inputs * linear.cut.parts if by_rows else inputs
        # The variance of a uniform draw within 1 / sqrt(in), which PEFT and mindpet start from.
        values = np.zeros((inputs, config.lora_rank), np.float32)
        if not init.skip_initial_values():
            std, cut = 1.0 / math.sqrt(3.0 * whole), linear.cut if by_rows else WHOLE
            a_name = f"{name}.lora_a"
            values = init.normal_part(seed, a_name, values.shape, std, cut, linear.tp_rank)
        self.lora_a = Parameter(Tensor(values, kind), name=f"{name}.lora_a")
        self.lora_b = Parameter(
            Tensor(np.zeros((config.lora_rank, outputs), np.float32), kind), name=f"{name}.lora_b"
        )
        self.dropout_state = model.dropout_state
        own = (linear.tp_rank * inputs, whole) if by_rows else None
        self.branch = LowRank(config, site, own)

    def cuts(self, of_layer: Cut) -> dict[str, Cut]:
        """How tensor parallelism splits the factors beside a layer that it splits like this."""
        if of_layer.dim is None:
            return {}
        return {(self.lora_a, self.lora_b)[of_layer.dim].name: of_layer}

    def partial(self, of_layer: Cut) -> set[str]:
        """The factor that is whole beside a layer that is split; training sums its gradient."""
        if of_layer.dim is None:
            return set()
        return {(self.lora_b, self.lora_a)[of_layer.dim].name}

    def construct(self, x: Tensor) -> Tensor:
        """x: [T, in]. Returns [T, out], or a part of it or of its sum, as the layer does."""
        return self.branch(x, self.lora_a, self.lora_b, dropout_key(self.dropout_state))


def get_pet_model(model: Network, config: LoraConfig | str | Path, *, seed: int = 0) -> Network:
    """Puts an adapter on a model, in place; from then on only the adapter is trained.

    Args:
        model: the base. Its weights are frozen and never change.
        config: what to put on which layers; or a folder with an adapter, ours or PEFT's, whose
            values are loaded.
        seed: of the initial values of a new adapter.

    Returns:
        the model.

    Raises:
        ConfigError: no layer has the given name, or the model has another adapter already.
        CheckpointError: the adapter in the folder does not belong to this model.
    """
    if isinstance(config, LoraConfig):
        if layers(model):
            if config == model.config.pet_config:
                return model  # as its own configuration says
            raise ConfigError(
                "pet_config: the model has an adapter already; merge it first (merge_adapter)"
            )
        attach(model, config, seed)
        return model
    adapter = files.read(config, hub.family_of(model.config), model.config, model.config.pet_config)
    if not model.context.cuts_weights:
        # The checksum is that of whole weights, of which a rank may have a part.
        files.check_base(adapter, io.Parameters(model.named_parameters()))
    if not layers(model):
        with init.no_initial_values():
            attach(model, adapter.config, seed)
    own = _own_part(model, adapter)
    _check_same(model, own)
    io.assign(model.named_parameters(), own)
    return model


def _own_part(model: Network, adapter: files.Adapter) -> Tensors:
    """What this rank holds of an adapter."""
    arrays, context = Memory(adapter.arrays, adapter.where), model.context
    if not context.cuts_weights:
        return arrays
    shapes = targets.shapes(hub.family_of(model.config), model.config)
    return Sharded(arrays, Partition(model.config, context.degrees, shapes), context.rank)


def attach(model: Network, config: LoraConfig, seed: int = 0) -> None:
    """Adds the adapter's layers and freezes all other parameters."""
    spec = hub.family_of(model.config)
    chosen = targets.targets(spec, model.config, config)
    linears = dict(_linears(model))
    for number, layer in enumerate(chosen):
        if layer not in linears:
            continue  # another pipeline stage has it
        linear = linears[layer]
        adapter = Lora(linear, layer, config, model, _FIRST_SITE + number, seed)
        adapter.set_train(model.training)
        # Assignment would put "adapter." in front of all of its names, dropout_state's too.
        del linear.adapter
        linear.insert_child_to_cell("adapter", adapter)
    model.config.pet_config = config.model_copy()
    model.forget_graphs()
    freeze(model, config)


def _check_same(model: Network, adapter: Tensors) -> None:
    """The adapter must be for all of the layers that the model has adapters on, and no others."""
    ours = {name for name in model.named_parameters() if layout.is_adapter_name(name)}
    theirs = {name for name in adapter.specs if layout.is_adapter_name(name)}
    if ours != theirs:
        names = ", ".join(sorted(ours ^ theirs))
        raise CheckpointError(
            f"{adapter.where}: is not on the layers that pet_config chooses (only one of them has "
            f"{names}); set target_modules as it was when the adapter was trained"
        )


def freeze(model: Network, config: LoraConfig) -> None:
    """Sets `requires_grad`: of adapters, task heads and what `freeze_exclude` names."""
    parameters = model.named_parameters()
    chosen = targets.trained(parameters, config)
    for name, parameter in parameters.items():
        parameter.requires_grad = name in chosen


def layers(model: Network) -> dict[str, Linear]:
    """The layers of a model that have an adapter, by name."""
    return {name: linear for name, linear in _linears(model) if linear.adapter is not None}


def merge_adapter(model: Network) -> Network:
    """Folds the adapter into the weights, in place: W + scale * A B, computed in float64.

    Returns:
        the model, which has no adapter any more; all of its weights can be trained.

    Raises:
        ConfigError: there is none.
    """
    found = layers(model)
    config = model.config.pet_config
    if not found or config is None:
        raise ConfigError("merge: the model has no adapter; load one first (get_pet_model)")
    merged = {}
    for name, linear in found.items():
        assert isinstance(linear.adapter, Lora)
        a, b = (io.values(p) for p in (linear.adapter.lora_a, linear.adapter.lora_b))
        weight = io.values(linear.weight)
        merged[f"{name}.weight"] = (weight + config.scale * (a @ b)).astype(np.float32)
        linear.adapter = None
    io.assign(model.named_parameters(), Memory(merged))
    model.config.pet_config = None
    model.forget_graphs()
    for parameter in model.named_parameters().values():
        parameter.requires_grad = True
    return model


def adapter_of(model: Network, base: str = "", base_sum: str = "") -> files.Adapter:
    """The adapter of a model, to be written.

    Raises:
        CheckpointError: the model has none.
    """
    config = model.config.pet_config
    if config is None:
        raise CheckpointError("adapter: the model has none; put one on it with get_pet_model")
    trained = {
        name: parameter
        for name, parameter in model.named_parameters().items()
        if layout.is_adapter_name(name) or parameter.requires_grad
    }
    values = io.Parameters(trained)
    arrays = {name: values.read(name) for name in values.specs}
    return files.Adapter(config, arrays, base, base_sum)


def log_trained(model: Network) -> None:
    """Says how many of the parameters are trained."""
    parameters = model.named_parameters().values()
    trained = sum(p.size for p in parameters if p.requires_grad)
    total = sum(p.size for p in parameters)
    get_logger(__name__).info(
        "LoRA on %d layers: %s of %s parameters are trained (%.2f %%)",
        len(layers(model)), f"{trained:,}", f"{total:,}", 100 * trained / total,
    )  # fmt: skip


def _linears(model: Network) -> Iterator[tuple[str, Linear]]:
    for _, cell in model.cells_and_names():
        if isinstance(cell, Linear):
            yield cell.weight.name.removesuffix(".weight"), cell
