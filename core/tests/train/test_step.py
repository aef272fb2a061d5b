"""The laws of a step: what it computes, and what must not change it."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor

from lm_core.testing.parity import assert_same
from lm_core.train.evaluation import LossTerms
from lm_core.train.optimizer import AdamW, Sgd
from lm_core.train.step import TrainStep, trained_parameters

pytestmark = pytest.mark.slow


def build(
    model, *, accumulation=1, clip=None, rule=AdamW, one_target=False, **options
) -> TrainStep:
    return TrainStep(
        model, rule(trained_parameters(model), **options), max_grad_norm=clip,
        accumulation=accumulation, seed=5, one_target=one_target,
    )  # fmt: skip


def cut(batch, parts: int):
    return [(a.copy(), b.copy()) for a, b in zip(*(np.split(x, parts) for x in batch), strict=True)]


def mean_gradients(model, batch) -> dict[str, np.ndarray]:
    """By MindSpore's own differentiation of the mean loss."""

    def mean(ids, labels):
        total, count = model.loss_terms(ids, labels)
        return total / count

    named = model.named_parameters()
    step = ms.jit(ms.value_and_grad(mean, None, ParameterTuple(named.values())))
    _, found = step(Tensor(batch[0]), Tensor(batch[1]))
    return {name: g.asnumpy().astype(np.float64) for name, g in zip(named, found, strict=True)}


def norm(gradients) -> float:
    return float(np.sqrt(sum(np.square(g).sum() for g in gradients.values())))


def close(actual, expected, tolerance=1e-6):
    for name, array in expected.items():
        assert np.abs(actual[name] - array).max() <= tolerance * np.abs(array).max(), name


@pytest.mark.parametrize("clip", [None, 0.1, 1e6])
@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_of_gradient_descent(tiny_model, micro_batch, values, clip, parts):
    """weights - lr * clipped mean gradient, over the tokens that are trained."""
    model = tiny_model()
    batch = micro_batch(8, ignored=0.4)
    gradients, before = mean_gradients(model, batch), values(model)
    step = build(model, accumulation=parts, clip=clip, rule=Sgd)
    result = step(cut(batch, parts), 0.5)
    size = norm(gradients)
    factor = 1.0 if clip is None else min(1.0, clip / size)
    close(values(model), {n: before[n] - 0.5 * factor * g for n, g in gradients.items()}, 2e-6)
    assert result.grad_norm == pytest.approx(size, rel=1e-6)
    assert result.tokens == (batch[1] != -100).sum()
    assert not result.skipped


def test_the_loss_is_the_mean_over_trained_tokens(tiny_model, micro_batch):
    model = tiny_model()
    batch = micro_batch(4, ignored=0.5)
    total, count = (float(x.asnumpy()) for x in LossTerms(model)(*map(Tensor, batch)))
    assert build(model)([batch], 0.1).loss == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation(tiny_model, micro_batch, values, parts):
    """8 x 1 = 1 x 8 = what lies between, over several steps of AdamW with clipping."""
    whole, cut_up = tiny_model(), tiny_model()
    first = build(whole, clip=0.2, weight_decay=0.1)
    second = build(cut_up, accumulation=parts, clip=0.2, weight_decay=0.1)
    for number in range(6):
        # Unequal numbers of trained tokens: a mean of means would differ.
        batch = micro_batch(8, seed=number, ignored=0.6)
        batch[1][0, 1:] = -100
        one, many = first([batch], 1e-2), second(cut(batch, parts), 1e-2)
        assert many.loss == pytest.approx(one.loss, rel=1e-6)
        assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-6)
        assert many.tokens == one.tokens
    close(values(cut_up), values(whole))


@pytest.mark.parametrize(("one_target", "positions"), [(False, 48), (True, 8)])
def test_scaled_gradients_have_the_size_of_a_means(tiny_model, micro_batch, one_target, positions):
    """Of all positions, or of the rows where each has one class; float16 has no digits to lose."""
    step, seen = build(tiny_model(), accumulation=2, one_target=one_target), []
    step._run = lambda batches, scale, _: seen.append(scale) or (1.0, 1.0, 1.0)
    step(cut(micro_batch(8), 2), 0.1, 1024.0)
    assert seen == [1024.0 / positions]


def test_the_same_run_twice_is_bit_identical(tiny_model, micro_batch, values):
    def run(parts):
        model = tiny_model(rate=0.3)
        step = build(model, accumulation=parts, clip=1.0, weight_decay=0.1)
        results = [step(cut(micro_batch(8, seed=n), parts), 1e-2) for n in range(5)]
        return results, values(model)

    for parts in (1, 2):
        (losses, weights), (again, weights_again) = run(parts), run(parts)
        assert losses == again
        assert_same(weights_again, weights)


def test_dropout_masks_change_from_step_to_step(tiny_model, micro_batch):
    step = build(tiny_model(rate=0.5), rule=Sgd)
    batch = micro_batch(8)
    losses = {step([batch], 1e-30).loss for _ in range(4)}
    assert len(losses) == 4
    first = build(tiny_model(rate=0.5), rule=Sgd)([batch], 0.0)
    assert first.loss in losses


def test_no_step_is_compiled_twice(tiny_model, micro_batch):
    """Neither a new rate, scale or step, nor an evaluation in between."""
    model = tiny_model(rate=0.1)
    step, parts = build(model), build(model, accumulation=2)
    evaluate = LossTerms(model)
    for number in range(4):
        batch = micro_batch(4, seed=number)
        step([batch], 1e-2 / (number + 1), 2.0**number)
        parts(cut(batch, 2), 1e-2 / (number + 1), 2.0**number)
        model.set_train(False)
        evaluate(*map(Tensor, batch))
    for cell in (step._fused, parts._accumulate, parts._apply, evaluate):
        assert len(cell.compile_cache) == 1


def test_evaluation_sees_the_new_weights_and_no_dropout(tiny_model, micro_batch):
    model, batch = tiny_model(rate=0.5), micro_batch(8)
    step, evaluate = build(model), LossTerms(model)
    losses = []
    for _ in range(3):
        model.set_train(False)
        found = [float(evaluate(*map(Tensor, batch))[0].asnumpy()) for _ in range(2)]
        assert found[0] == found[1]
        losses.append(found[0])
        step([batch], 1e-2)
        assert model.training
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("scale", [2.0**16, 2.0**32, 3.0])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_scale_changes_nothing(tiny_model, micro_batch, values, scale, parts):
    plain, scaled = tiny_model(), tiny_model()
    a, b = (build(m, accumulation=parts, clip=0.2) for m in (plain, scaled))
    for number in range(4):
        batch = cut(micro_batch(8, seed=number, ignored=0.3), parts)
        one, other = a(batch, 1e-2), b(batch, 1e-2, scale)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-6)
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
    close(values(scaled), values(plain), 2e-6)


@pytest.mark.parametrize("parts", [1, 2])
def test_an_overflow_changes_nothing(tiny_model, micro_batch, values, parts):
    model = tiny_model()
    step = build(model, accumulation=parts, clip=1.0, weight_decay=0.1)
    batch = cut(micro_batch(8), parts)
    step(batch, 1e-2)
    before = values(model) | {n: p.asnumpy().copy() for n, p in step.optimizer.state().items()}
    result = step(batch, 1e-2, 3e38)
    assert result.skipped
    assert np.isfinite(result.loss)
    assert (step.steps, step.updates) == (2, 1)
    after = values(model) | {n: p.asnumpy() for n, p in step.optimizer.state().items()}
    assert_same(after, before)
    # And the next step is the one that would have come without it.
    other = tiny_model()
    reference = build(other, accumulation=parts, clip=1.0, weight_decay=0.1)
    for _ in range(2):
        reference(batch, 1e-2)
    step(batch, 1e-2)
    assert_same(values(model), values(other))


@pytest.mark.parametrize("parts", [1, 2])
def test_an_infinite_loss_with_finite_gradients_changes_nothing(
    tiny_model, micro_batch, values, parts
):
    model = tiny_model(poison=22)
    step = build(model, accumulation=parts)
    ids, labels = micro_batch(8)
    ids %= 22
    step(cut((ids, labels), parts), 1e-2)
    before = values(model)
    ids[-1, -1] = 22
    result = step(cut((ids, labels), parts), 1e-2)
    assert result.skipped and result.loss == np.inf and np.isfinite(result.grad_norm)
    assert (step.steps, step.updates) == (2, 1)
    assert_same(values(model), before)


def test_untrained_micro_batches_and_rows_count_for_nothing(tiny_model, micro_batch, values):
    batch = micro_batch(4)
    empty = (batch[0], np.full_like(batch[1], -100))
    plain, mixed = tiny_model(), tiny_model()
    one = build(plain, rule=Sgd)([batch], 0.1)
    two = build(mixed, rule=Sgd, accumulation=2)([batch, empty], 0.1)
    assert (two.tokens, two.loss) == (one.tokens, pytest.approx(one.loss, rel=1e-6))
    close(values(mixed), values(plain))
    nothing = build(tiny_model(), rule=Sgd)([empty], 0.1)
    assert (nothing.tokens, nothing.loss, nothing.grad_norm) == (0, 0.0, 0.0)


def test_frozen_weights_stay_and_have_no_state(tiny_model, micro_batch, values):
    model = tiny_model()
    model.named_parameters()["embedding.weight"].requires_grad = False
    before = values(model)
    step = build(model, weight_decay=0.1)
    assert len(step.optimizer.state()) == 2 * (len(before) - 1)
    step([micro_batch(4)], 1e-2)
    after = values(model)
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert moved == [name for name in before if name != "embedding.weight"]


def test_half_precision_weights_train(tiny_model, micro_batch):
    batch = micro_batch(8)
    half, full = build(tiny_model(kind=ms.float16), clip=1.0), build(tiny_model(), clip=1.0)
    losses = np.array([half([batch], 1e-2, 1024.0).loss for _ in range(20)])
    expected = np.array([full([batch], 1e-2).loss for _ in range(20)])
    np.testing.assert_allclose(losses, expected, rtol=5e-3)
    assert losses[-1] < losses[0] - 0.5


def test_without_accumulation_no_gradient_is_kept(tiny_model):
    def own(cell):
        return [p.name for p in cell.get_parameters() if p.name.startswith("gradient.")]

    model = tiny_model()
    assert not own(build(model)._fused)
    assert len(own(build(model, accumulation=2)._accumulate)) == len(model.named_parameters())


@pytest.mark.parametrize("parts", [1, 2])
def test_steps_of_adamw_against_numpy(tiny_model, micro_batch, values, parts):
    """Clip, loss scale, decay of matrices only, over steps in which some overflow: float64."""
    model, twin = tiny_model(), tiny_model()
    step = build(model, accumulation=parts, clip=0.05, weight_decay=0.1)
    exact = {name: array.astype(np.float64) for name, array in values(model).items()}
    m, v = ({name: np.zeros_like(array) for name, array in exact.items()} for _ in range(2))
    updates = 0
    for number in range(8):
        batch = micro_batch(8, seed=number, ignored=0.4)
        rate, overflows = 1e-2 / (number + 1), number in (0, 4)
        result = step(cut(batch, parts), rate, 3e38 if overflows else 2.0**20)
        assert result.skipped == overflows
        if overflows:
            continue
        for name, parameter in twin.named_parameters().items():
            parameter.set_data(Tensor(exact[name].astype(np.float32)))
        gradients = mean_gradients(twin, batch)
        factor = min(1.0, 0.05 / (norm(gradients) + 1e-6))
        assert factor < 1.0
        updates += 1
        for name, gradient in gradients.items():
            g = gradient * factor
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            mh, vh = m[name] / (1 - 0.9**updates), v[name] / (1 - 0.999**updates)
            decay = 0.1 if exact[name].ndim > 1 else 0.0
            exact[name] -= rate * (mh / (np.sqrt(vh) + 1e-8) + decay * exact[name])
    assert updates == 6
    close(values(model), exact, 5e-6)
