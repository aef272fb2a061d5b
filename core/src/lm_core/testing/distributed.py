"""What the core expects of every model under data, tensor and pipeline parallelism."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from lm_core.config.parallel import ParallelConfig
from lm_core.parallel.context import ParallelContext
from lm_core.parallel.partition import WHOLE, Partition
from lm_core.peft import targets
from lm_core.testing import ranks, sums, tiny
from lm_core.testing.parity import TOLERANCES
from lm_core.testing.ranks import Case, Found

if TYPE_CHECKING:
    from lm_core.spec import ModelSpec

_LORA = {"lora_rank": 2, "lora_dropout": 0.1, "target_modules": ".*(q|v|out|up|down)"}
_PP2 = {"pipeline_stage": 2, "micro_batch_num": 2}
_FOUR = {"data_parallel": 2, "model_parallel": 2}
_ONE_LAYER = {"num_layers": 1}
_CLASSES = {"task": "text_classification", "num_labels": 3}
_PROMPTS = [[1, 2, 3], [4, 5, 6, 7]]
_TP2 = {
    "tp2": Case({"model_parallel": 2, "vocab_emb_dp": False}, prompts=_PROMPTS, first=2),
    "tp2-lora": Case({"model_parallel": 2}, {**_ONE_LAYER, "pet_config": _LORA}, first=2),
}
CASES = {"tp2-pp2": Case({"model_parallel": 2, **_PP2, "vocab_emb_dp": False}, parts=4), **_TP2}
"""What one job of four processes computes: all that depends on the network.

Those with a pipeline begin at process 0, since its messages name processes and not places.
Dropout is as the tiny model has it: masks do not depend on the layout either.
"""
ALL_CASES = {
    "dp2-tp2-pp2": Case({**_FOUR, **_PP2, "vocab_emb_dp": False}, parts=4),
    "dp2-tp2": Case(_FOUR, _ONE_LAYER, first=4),
    **_TP2,
    "pp2": Case({"pipeline_stage": 2, "micro_batch_num": 4}, parts=4),
    "dp2": Case({"data_parallel": 2, "optimizer_shard": True}, _ONE_LAYER, parts=2),
}
"""And what one of eight does, the cases of fewer beside each other: also what is the core's alone,
so one model shows it."""
BUILT = {
    **ALL_CASES,
    **CASES,
    "tp2-pp2-classes": Case({"model_parallel": 2, **_PP2}, _CLASSES),
}
"""What is built for every rank, in one process."""


class ParallelContract:
    """Part of `ModelContract`.

    A subclass gives `spec`; `small` are the sizes of the model, `cases` what a job computes.
    """

    spec: ClassVar[ModelSpec]
    small: ClassVar[dict[str, Any]] = {
        "vocab_size": 96, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "seq_length": 16,
    }  # fmt: skip
    cases: ClassVar[dict[str, Case]] = CASES

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """The cases of this model, and those of them whose graphs all run once in a step."""
        once = [name for name, case in self.cases.items() if not case.repeats]
        for argument, names in {"computed": self.cases, "counted": once}.items():
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, names)

    def case(self, name: str) -> Case:
        """A case with the sizes of this model."""
        found = BUILT[name]
        return replace(found, sizes={**self.small, **found.sizes})

    def partition(self, case: Case) -> Partition:
        """How a case cuts the model."""
        config = ranks.settings(self.spec, case).model.config
        return Partition(config, ParallelConfig(**case.degrees), targets.shapes(self.spec, config))

    @pytest.mark.parametrize("name", BUILT)
    def test_each_rank_builds_its_part(self, name: str) -> None:
        """Names, shapes, cuts and initial values are those of the partition, on every rank."""
        from lm_core.auto import empty_model

        case = self.case(name)
        tasks = self.spec.config_class.architectures.values()
        if case.sizes.get("task", "text_generation") not in tasks:
            pytest.skip(f"{self.spec.name} has no such head")
        run, partition = ranks.settings(self.spec, case), self.partition(case)
        whole = empty_model(run.model.config)
        whole.initialize(run.seed)
        values = tiny.weights(whole)
        for rank in range(case.world_size):
            degrees = run.model.config.parallel_config
            context = ParallelContext.from_config(degrees, case.world_size, rank)
            model = empty_model(run.model.config, context=context)
            model.initialize(run.seed)
            own = tiny.weights(model)
            assert set(own) == set(partition.names(context.stage))
            for part, array in own.items():
                assert model.cuts().get(part, WHOLE) == partition.cut(part), part
                expected = values[part][partition.slices(part, context.tp_rank)]
                np.testing.assert_array_equal(array, expected, err_msg=part)

    @pytest.fixture(scope="class")
    @classmethod
    def job(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Found]]:
        """What each rank of each case finds, all in one job."""
        cases = [cls().case(name) for name in cls.cases]
        found = ranks.run(cls.spec, cases, tmp_path_factory.mktemp("job"))
        return dict(zip(cls.cases, found, strict=True))

    @pytest.fixture(scope="class")
    @classmethod
    def alone(cls) -> dict[str, Found]:
        """What one process finds with models of some sizes; computed when first asked for."""
        return {}

    def reference(self, alone: dict[str, Found], case: Case) -> Found:
        """What one process finds for a case."""
        key = repr(case.sizes)
        if key not in alone:
            alike = [other for other in map(self.case, self.cases) if other.sizes == case.sizes]
            prompts = next((other.prompts for other in alike if other.prompts), [])
            alone[key] = ranks.compute(self.spec, Case(sizes=case.sizes, prompts=prompts))
        return alone[key]

    @staticmethod
    def compare(one: Found, expected: Found, partition: Partition, rank: int) -> None:
        """A rank's losses, norms, weights and tokens with those of one process."""
        near = {"rtol": 0, "atol": TOLERANCES.parallel}
        where = f"rank {rank} of {partition.degrees}"
        np.testing.assert_allclose(one.losses, expected.losses, **near, err_msg=where)
        np.testing.assert_allclose(one.norms, expected.norms, **near, err_msg=where)
        tensor_rank = rank % partition.degrees.model_parallel
        for name, array in one.weights.items():
            own = expected.weights[name][partition.slices(name, tensor_rank)]
            np.testing.assert_allclose(array, own, **near, err_msg=f"{name}, {where}")
        if one.logits is not None:
            assert expected.logits is not None and one.tokens == expected.tokens, where
            np.testing.assert_allclose(one.logits, expected.logits, **near, err_msg=where)

    @pytest.mark.distributed
    @pytest.mark.slow
    def test_several_processes_are_one(
        self, computed: str, job: dict[str, list[Found]], alone: dict[str, Found]
    ) -> None:
        """Five steps with clipping and dropout, then answers: greedy, drawn, and by beams."""
        case = self.case(computed)
        expected, partition = self.reference(alone, case), self.partition(case)
        for rank, one in enumerate(job[computed]):
            self.compare(one, expected, partition, rank)

    @pytest.mark.distributed
    @pytest.mark.slow
    def test_every_sum_of_a_step_is_foretold(
        self, counted: str, job: dict[str, list[Found]]
    ) -> None:
        """What is said about the exchanges of a step, against the compiled graphs of real steps."""
        case = self.case(counted)
        run, partition = ranks.settings(self.spec, case), self.partition(case)
        run.runner_config.batch_size = ranks.ROWS // run.degrees.data_parallel // case.parts
        for rank, one in enumerate(job[counted]):
            stage = rank * run.degrees.pipeline_stage // case.world_size
            assert one.sums == sums.said(run, partition, stage), f"rank {rank} of {case.degrees}"
            assert one.sums
