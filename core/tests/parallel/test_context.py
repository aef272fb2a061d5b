"""Places of processes and the groups that they form."""

from __future__ import annotations

from itertools import product

import pytest

from lm_core.config.parallel import ParallelConfig
from lm_core.config.schema import ContextConfig, ParallelContextConfig
from lm_core.errors import ConfigError
from lm_core.parallel import backend, context
from lm_core.parallel.context import ParallelContext, get_real_rank, init_context, place_by

LAYOUTS = list(product((1, 2, 3), (1, 2, 4), (1, 2, 3)))


def every_rank(dp: int, tp: int, pp: int) -> list[ParallelContext]:
    degrees = ParallelConfig(
        data_parallel=dp, model_parallel=tp, pipeline_stage=pp, micro_batch_num=pp
    )
    size = degrees.world_size
    return [ParallelContext.from_config(degrees, size, rank) for rank in range(size)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_rank_has_a_place_of_its_own(layout):
    dp, tp, pp = layout
    places = [(one.stage, one.dp_rank, one.tp_rank) for one in every_rank(*layout)]
    assert places == list(product(range(pp), range(dp), range(tp)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_all_members_of_a_group_name_it_alike(layout):
    """Same name, same ranks in the same order; each is one of them; and nobody is left out."""
    contexts = every_rank(*layout)
    members: dict[str, list[int]] = {}
    for one in contexts:
        for name, ranks in one.groups():
            assert one.rank in ranks
            assert ranks == sorted(set(ranks))
            assert members.setdefault(name, ranks) == ranks
    for name, ranks in members.items():
        assert [one.rank for one in contexts if name in dict(one.groups())] == ranks


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_making_the_groups_cannot_deadlock(layout):
    """Making a group waits for its members, so one must always be the next of all of its own."""
    waiting = {one.rank: list(one.groups()) for one in every_rank(*layout)}
    while any(waiting.values()):
        heads = {rank: groups[0] for rank, groups in waiting.items() if groups}
        ready = [
            (name, ranks)
            for name, ranks in heads.values()
            if all(heads.get(rank, ("",))[0] == name for rank in ranks)
        ]
        assert ready, heads
        for rank in {rank for _, ranks in ready for rank in ranks}:
            waiting[rank].pop(0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_the_groups_are(layout):
    dp, tp, pp = layout
    for one in every_rank(*layout):
        groups = dict(one.groups())
        sizes = {
            one.tp_group: tp,
            one.dp_group: dp,
            one.model_group: tp * pp,
            one.world_group: dp * tp * pp,
            one.ends_group: 2,
        }
        assert {name: len(groups[name]) for name in sizes if name} == {
            name: size for name, size in sizes.items() if name
        }
        assert bool(one.ends_group) == (pp > 1 and one.stage in (0, pp - 1))
        for neighbour in (one.stage - 1, one.stage + 1):
            if 0 <= neighbour < pp:
                both = groups[one.pair_group(min(neighbour, one.stage))]
                assert set(both) == {one.rank, one.rank_at(stage=neighbour)}


def test_one_process_has_no_groups():
    assert list(ParallelContext.local().groups()) == []


def test_layouts_of_one_job_share_no_names():
    """Two models in one job may have other degrees."""
    names = [{name for one in every_rank(*own) for name, _ in one.groups()} for own in LAYOUTS]
    assert sum(map(len, names)) == len(set().union(*names))


def test_degrees_of_another_number_of_processes():
    with pytest.raises(ConfigError) as error:
        ParallelContext.from_config(ParallelConfig(data_parallel=2, model_parallel=2), 2, 0)
    assert str(error.value) == (
        "parallel_config: data_parallel 2 x model_parallel 2 x pipeline_stage 1 = 4 but 2 "
        "process(es) run; the product must be 2: change the degrees or the number of processes"
    )


def test_a_part_of_something_that_does_not_divide():
    with pytest.raises(ConfigError, match="4 does not divide 6 heads; use one of 1, 2, 3, 6"):
        every_rank(1, 4, 1)[0].shard(6, "heads")


@pytest.mark.parametrize("degree", [1, 2])
def test_alone(degree):
    """Degrees are for several processes; a run for a cluster may be used in one."""
    assert init_context(parallel_config=ParallelConfig(data_parallel=degree)) == (0, 1)
    assert ParallelContext.current() == ParallelContext.local()


def test_one_of_several_must_say_so(monkeypatch):
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    with pytest.raises(ConfigError, match="is false but this is one of 2 processes"):
        init_context()


def test_nobody_to_join(monkeypatch):
    monkeypatch.delenv("MS_WORKER_NUM", raising=False)
    monkeypatch.delenv("RANK_SIZE", raising=False)
    with pytest.raises(ConfigError, match="needs several processes and this one is alone"):
        init_context(use_parallel=True)


@pytest.fixture
def second_of_four(monkeypatch):
    """`init_context` finds three others, whom nobody has to start."""
    for name in ("_joined", "_place"):
        monkeypatch.setattr(context, name, getattr(context, name))
    monkeypatch.setattr(backend, "join", lambda: (1, 4))
    monkeypatch.setattr(backend, "make_groups", list)


def test_degrees_of_a_model_count_where_none_were_given(second_of_four):
    """A program may join the others before it has a configuration."""
    switches = ParallelContextConfig(parallel_mode="SEMI_AUTO_PARALLEL", full_batch=True)
    device = ContextConfig(device_target="Ascend", device_id=3)
    assert init_context(True, device, switches) == (1, 4)
    assert ParallelContext.current().world_size == 1
    assert place_by(ParallelConfig()) == ParallelContext.local()  # each has a whole model
    place = place_by(ParallelConfig(data_parallel=2, model_parallel=2))
    assert (place.rank, place.dp_rank, place.tp_rank) == (1, 0, 1)
    assert ParallelContext.current() == place
    assert place_by(ParallelConfig(model_parallel=4)) == place  # once is enough


def test_degrees_of_a_model_that_cannot_be(second_of_four):
    init_context(True)
    with pytest.raises(ConfigError, match="= 8 but 4 process"):
        place_by(ParallelConfig(model_parallel=8))


def test_degrees_that_were_given_decide(second_of_four):
    init_context(True, parallel_config=ParallelConfig(data_parallel=4))
    assert place_by(ParallelConfig(model_parallel=4)).data_parallel == 4


def test_degrees_of_a_model_mean_nothing_to_one_alone():
    assert place_by(ParallelConfig(model_parallel=8)) == ParallelContext.local()


def test_the_rank_of_this_process(second_of_four, monkeypatch):
    monkeypatch.setattr(context, "_joined", (0, 1))
    monkeypatch.delenv("RANK_ID", raising=False)
    assert get_real_rank() == 0
    monkeypatch.setenv("RANK_ID", "7")  # of the job that it was started in
    assert get_real_rank() == 7
    init_context(True)
    assert get_real_rank() == 1


def test_a_device_that_is_not_there_is_said(caplog, monkeypatch):
    """Run files of clusters work on a laptop, but not in silence."""
    monkeypatch.setattr("lm_core.log._noticed", set())
    init_context(False, {"device_target": "Ascend", "device_id": 0})
    assert "device_target: no Ascend here; computing on the CPU" in caplog.text
    caplog.clear()
    init_context(False, {"device_target": "CPU"})
    assert not caplog.text
