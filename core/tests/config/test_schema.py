"""Names, values and cross-checks of single sections."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from lm_core import log
from lm_core.config import checks
from lm_core.config.model import LoraConfig, ModelConfig
from lm_core.config.parallel import ParallelConfig
from lm_core.config.schema import RunConfig
from lm_core.config.section import Section, suggest
from lm_core.config.training import CALLBACK_NAMES, LrSchedule, RunnerWrapper
from lm_core.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "names"),
    [
        (
            "optimizer",
            {
                "adamw": [
                    "AdamW",
                    "FusedAdamWeightDecay",
                    "FP32StateAdamWeightDecay",
                    "FusedCastAdamWeightDecay",
                    "AdamWeightDecay",
                    "fused_adamw",
                    "fp32_adamw",
                ],
                "sgd": ["sgd", "SGD"],
            },
        ),
        (
            "lr_schedule",
            {
                "constant": ["constant", "ConstantWarmUpLR", "constant_with_warmup"],
                "linear": ["linear", "LinearWithWarmUpLR"],
                "cosine": ["cosine", "CosineWithWarmUpLR"],
                "cosine_with_restarts": ["cosine_with_restarts", "CosineWithRestartsAndWarmUpLR"],
                "polynomial": ["polynomial", "PolynomialWithWarmUpLR"],
            },
        ),
        (
            "trainer",
            {
                "text_generation": ["CausalLanguageModelingTrainer"],
                "text_classification": ["TextClassificationTrainer"],
            },
        ),
        (
            "train_dataset_task",
            {
                "causal_lm": ["CausalLanguageModelDataset"],
                "text_classification": ["TextClassificationDataset"],
                "keyword_generation": ["KeyWordGenDataset"],
            },
        ),
        (
            "runner_wrapper",
            {"train_one_step": ["MFTrainOneStepCell", "MFPipelineWithLossScaleCell"]},
        ),
    ],
)
def test_the_cards_names_mean_ours(load, key, names):
    for canonical, aliases in names.items():
        for name in (canonical, *aliases):
            assert getattr(load({key: {"type": name}}), key).type == canonical


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("PerplexityMetric", "perplexity"),
        ("Accuracy", "accuracy"),
        ("ADGENMetric", "adgen"),
        ("EmF1Metric", "em_f1"),
        ("PromptAccMetric", "prompt_accuracy"),
    ],
)
def test_metrics_alone_and_in_a_list(load, name, canonical):
    assert [item.type for item in load({"metric": {"type": name}}).metric] == [canonical]
    assert [
        item.type for item in load({"metric": [{"type": name}, {"type": "Accuracy"}]}).metric
    ] == [canonical, "accuracy"]


def test_every_callback_name(load):
    for name, canonical in CALLBACK_NAMES.items():
        (callback,) = load({"callbacks": [{"type": name}]}).callbacks
        assert callback.type == canonical
    run = load(
        {
            "callbacks": [{"type": "ObsMonitor"}],
            "eval_callbacks": [{"type": "ObsMonitor", "keep_last": False}],
        }
    )
    assert (
        run.loss_monitor is None and run.checkpoint is None and not run.eval_callbacks[0].keep_last
    )


def test_a_wrong_name_lists_the_right_ones(problems):
    (line,) = problems({"optimizer": {"type": "Adamw"}})
    assert "must be one of adamw (AdamW, " in line and line.endswith("did you mean adamw?")
    (line,) = problems({"lr_schedule": {"type": "warmup"}})
    assert "one of constant (ConstantWarmUpLR" in line


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        (1024, "fixed", 1024.0),
        (1.0, "fixed", 1.0),
        ("dynamic", "dynamic", 65536.0),
        (
            {"type": "DynamicLossScaleUpdateCell", "loss_scale_value": 4294967296},
            "dynamic",
            2.0**32,
        ),
        ({"type": "FixedLossScaleUpdateCell", "loss_scale_value": 128}, "fixed", 128.0),
        ({"type": "AdaptiveLossScaleUpdateCell", "max_scale_window": 500}, "dynamic", 65536.0),
    ],
)
def test_loss_scales(load, given, kind, value):
    scale = load({"runner_wrapper": {"scale_sense": given}}).loss_scale
    assert (scale.type, scale.loss_scale_value) == (kind, value)
    assert RunnerWrapper(scale_sense=given).scale_sense == scale


@pytest.mark.parametrize(
    "given", [0, -1, True, [1], "fxed", {"type": "dynamic", "scale_factor": 1}]
)
def test_loss_scales_that_are_none(problems, given):
    (line,) = problems({"runner_wrapper": {"scale_sense": given}})
    assert line.startswith("run: runner_wrapper.scale_sense")


def test_the_loss_scale_follows_the_precision(load):
    assert (load({}).loss_scale.type, load({}).loss_scale.loss_scale_value) == ("fixed", 1.0)
    assert (
        load({"model": {"model_config": {"compute_dtype": "float16"}}}).loss_scale.type == "dynamic"
    )
    assert (
        load({"model": {"model_config": {"compute_dtype": "bfloat16"}}}).loss_scale.loss_scale_value
        == 1.0
    )


def test_seed_zero_is_a_seed(load):
    assert load({"seed": 0}).seed == 0 and load({"seed": 0}).is_set("seed")
    assert not load({}).is_set("seed")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "0", None])
def test_what_is_no_seed(problems, seed):
    (line,) = problems({"seed": seed})
    assert line.startswith("run: seed: is ")


def test_learning_rates(load):
    assert load({"optimizer": {"learning_rate": 1e-3}}).learning_rate == 1e-3
    assert (
        load(
            {"optimizer": {"learning_rate": 1e-3}, "lr_schedule": {"learning_rate": 1e-4}}
        ).learning_rate
        == 1e-4
    )


@pytest.mark.parametrize(
    ("schedule", "key", "said"),
    [
        ({"warmup_steps": 5, "total_steps": 5}, "warmup_steps", "less than 5"),
        ({"total_steps": 0}, "total_steps", "-1"),
        ({"total_steps": -2}, "total_steps", ">= -1"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "warmup_ratio", "keep one"),
        ({"warmup_ratio": 1.0}, "warmup_ratio", "< 1"),
        ({"warmup_ratio": -0.1}, "warmup_ratio", ">= 0"),
        ({"learning_rate": 1e-4, "lr_end": 1e-3}, "lr_end", "at most"),
        ({"learning_rate": 0.0}, "learning_rate", "> 0"),
        ({"learning_rate": "1e-4"}, "learning_rate", "(text)"),
    ],
)
def test_schedules_that_cannot_be(problems, schedule, key, said):
    (line,) = problems({"lr_schedule": schedule})
    assert line.startswith(f"run: lr_schedule.{key}: ") and said in line


@pytest.mark.parametrize(
    "schedule",
    [
        {"warmup_steps": 2000, "total_steps": -1},
        {"warmup_steps": 0, "warmup_ratio": 0.03},
        {"warmup_ratio": 0},
        {"warmup_steps": 4, "total_steps": 5},
        {"lr_end": 0, "learning_rate": 1e-5},
    ],
)
def test_schedules_that_can(load, schedule):
    assert load({"lr_schedule": schedule}).lr_schedule.problems() == []


def test_there_are_no_experts(problems):
    assert problems({"parallel_config": {"expert_parallel": 2}}) == [
        "run: parallel_config.expert_parallel: is 2; must be 1: there are no experts"
    ]


def test_degrees_reach_the_model_when_they_are_used(load):
    degrees = {"data_parallel": 2, "model_parallel": 2, "micro_batch_num": 3}
    run = load(
        {"use_parallel": True, "parallel_config": degrees, "recompute_config": {"recompute": True}}
    )
    assert run.model.config.parallel_config.world_size == 4
    assert run.model.config.parallel_config.recompute.recompute
    assert not run.model.config.parallel_config.optimizer_shard
    run = load(
        {
            "use_parallel": True,
            "parallel_config": degrees,
            "parallel": {"enable_parallel_optimizer": True},
        }
    )
    assert run.model.config.parallel_config.optimizer_shard and run.degrees.optimizer_shard
    assert run.parallel_config.optimizer_shard is None  # as it was written
    run = load({"parallel_config": degrees, "recompute_config": {"recompute": True}})
    assert run.model.config.parallel_config.world_size == 1 and run.parallel_config.world_size == 4
    assert run.model.config.parallel_config.recompute.recompute


def test_the_world_must_have_the_size_of_the_product(load):
    run = load({"use_parallel": True, "parallel_config": {"data_parallel": 4, "model_parallel": 2}})
    checks.check_world(run, 8)
    with pytest.raises(ConfigError) as caught:
        checks.check_world(run, 1)
    assert str(caught.value).startswith(
        "parallel_config: data_parallel 4 x model_parallel 2 x pipeline_stage 1 = 8 processes, "
        "but 1 process runs"
    )
    checks.check_world(load({}), 1)
    with pytest.raises(ConfigError, match="use_parallel"):
        checks.check_world(load({}), 8)


def test_networks_and_trainers_must_agree(load, problems):
    load(
        {
            "model": {"arch": {"type": "ToyClassifier"}},
            "trainer": {"type": "TextClassificationTrainer"},
        }
    )
    (line,) = problems({"model": {"arch": {"type": "ToyLm"}}})
    assert line.endswith("did you mean ToyLM?")
    (line,) = problems(
        {"model": {"arch": {"type": "ToyLM"}}, "trainer": {"type": "text_classification"}}
    )
    assert (
        line == "run: trainer.type: text_classification does not fit the network ToyLM; "
        "must be text_generation"
    )


@pytest.mark.parametrize("key", ["eval_step_interval", "eval_epoch_interval"])
def test_intervals(load, problems, key):
    assert getattr(load({key: -1}), key) == -1
    for value in (0, -2):
        assert problems({key: value}) == [
            f"run: {key}: is {value}; must be -1 (off) or more than 0"
        ]


def test_keys_without_effect_are_said_once_and_only_where_they_would_matter(load, capsys):
    source = {
        "auto_tune": True,
        "profile": False,
        "runner_config": {"sink_mode": True, "sink_size": -1},
        "context": {"enable_graph_kernel": True, "max_call_depth": 10000},
        "moe_config": {"expert_num": 1},
        "model": {"model_config": {"use_kvcache_op": True, "expert_num": 1}},
    }
    run = load(source)
    expected = [
        "auto_tune",
        "context.enable_graph_kernel",
        "model.model_config.use_kvcache_op",
        "runner_config.sink_mode",
    ]
    assert checks.no_effect(run) == expected
    load(source)
    assert load({}) and checks.no_effect(load({})) == []
    assert len([key for key in log._noticed if key.startswith("no effect")]) == 1


def test_mixtures_of_experts_are_refused(problems):
    (line,) = problems({"moe_config": {"expert_num": 4}})
    assert line == "run: moe_config.expert_num: is 4; must be 1: mixtures of experts are not built"
    (line,) = problems({"model": {"model_config": {"use_moe": True}}})
    assert "mixtures of experts" in line


def test_suggestions():
    assert suggest("batchsize", ["batch_size", "epochs"]) == "did you mean batch_size?"
    assert suggest("SEED", ["seed"]) == "did you mean seed?"
    assert suggest("zzz", ["a", "b"]) == "known here: a, b"


def test_defaults_are_valid_and_typed():
    """pydantic does not check defaults; an int where floats stand would change in a dump."""
    seen: set[type] = set()

    def visit(section: type[BaseModel]) -> None:
        if section in seen:
            return
        seen.add(section)
        for name, field in section.model_fields.items():
            kinds = field.annotation if isinstance(field.annotation, type) else None
            if kinds is float and not field.is_required():
                assert type(field.default) is float, f"{section.__name__}.{name}"
            if kinds and issubclass(kinds, BaseModel):
                visit(kinds)

    for section in (
        RunConfig,
        ModelConfig,
        LoraConfig,
        ParallelConfig,
        LrSchedule,
        *Section.__subclasses__(),
    ):
        visit(section)
    for section in seen:
        if not any(field.is_required() for field in section.model_fields.values()):
            values = section().model_dump(by_alias=True)
            assert section(**values).model_dump(by_alias=True) == values
