"""What the core expects of every model package, as tests to inherit.

    class TestGpt2(ModelContract):
        spec = SPEC
        goldens = Path(__file__).parent / "goldens"

A package that must differ overrides a test with `xfail(reason=...)`, where a reviewer sees it.
"""

from __future__ import annotations

import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from lm_core import spec as registry
from lm_core.checkpoint.layout import Memory
from lm_core.cli import EXAMPLES, VERBS
from lm_core.testing import parity, tiny
from lm_core.testing.adapters import AdapterContract
from lm_core.testing.classification import ClassifierContract
from lm_core.testing.distributed import ParallelContract
from lm_core.testing.network import SHAPE, NetworkContract, logits_of
from lm_core.testing.parity import assert_same

if TYPE_CHECKING:
    from lm_core.nn.decoder import CausalLM
    from lm_core.spec import ModelSpec

_NO_MODULES = {"config"}
"""`lm config` looks at runs of all models."""
LAYOUTS = ("hf", "mindformers")


class ModelContract(NetworkContract, AdapterContract, ClassifierContract, ParallelContract):
    """A subclass gives `spec`, and `goldens`: a directory whose folders are recorded cases."""

    spec: ClassVar[ModelSpec]
    goldens: ClassVar[Path | None] = None

    # What the package says of itself.

    def test_the_package_is_found_by_all_its_names(self) -> None:
        """By the entry point, the presets and the published model types."""
        assert registry.installed()[self.spec.name] is self.spec
        for name in (
            self.spec.name,
            *self.spec.presets,
            *self.spec.hf_types,
            *self.spec.run_names(),
        ):
            assert registry.find(name) is self.spec, name

    def test_the_spec_is_complete(self) -> None:
        """Nothing that a verb will look for is left out."""
        assert f"{self.spec.name}_tiny" in self.spec.presets
        assert set(LAYOUTS) <= set(self.spec.tables)
        assert self.spec.hf_types
        assert self.spec.preprocessors
        assert self.spec.run_names()

    def test_every_verb_is_a_module_that_helps(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`python -m lm_x.VERB --help`: of this verb and this model, and of no other one."""
        package = f"lm_{self.spec.name}"
        others = {name for name in registry.names() if name != self.spec.name}
        for verb in set(VERBS) - _NO_MODULES - ({"chat"} if not self.spec.chat else set()):
            found = find_spec(f"{package}.{verb}")
            assert found is not None and found.origin is not None, verb
            monkeypatch.setattr(sys, "argv", [found.origin, "--help"])
            with pytest.raises(SystemExit) as end:
                runpy.run_path(found.origin, run_name="__main__")
            shown = capsys.readouterr().out
            assert end.value.code == 0
            assert shown.startswith(f"usage: python -m {package}.{verb} ")
            assert f"{self.spec.name}: {VERBS[verb]}" in shown
            assert not [name for name in others if name in shown.lower()], verb
            told, _, example = shown.partition(f"Example:\n  python -m {package}.{verb} ")
            assert bool(example) == (verb in EXAMPLES), verb
            assert not [flag for flag in re.findall(r"--[a-z_]+", example) if flag not in told]

    def test_chat_is_a_verb_where_there_is_a_format(self) -> None:
        """`python -m lm_x.chat`, or one line that says why not."""
        from lm_core.cli import run_verb

        assert (find_spec(f"lm_{self.spec.name}.chat") is not None) == self.spec.chat
        if not self.spec.chat:
            assert run_verb("chat", self.spec, []) == 2

    def test_presets_survive_their_dump(self) -> None:
        """A configuration read back from what it says of itself is the same."""
        for name, preset in self.spec.presets.items():
            assert isinstance(preset, self.spec.config_class), name
            assert preset.copy() == preset, name

    def test_parameters_are_counted_without_building(self) -> None:
        """For every preset, also those that no test machine could hold."""
        for name, preset in self.spec.presets.items():
            shapes = self.spec.tables["hf"].shapes(preset)
            total = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
            assert preset.parameter_count() == total, name

    def test_every_preset_goes_through_every_table(self) -> None:
        """Ours, theirs, ours: each shape comes back, and each of their names is known as theirs."""
        nothing = np.dtype([])  # Arrays of any shape that hold no byte.
        for name, preset in self.spec.presets.items():
            for layout, table in self.spec.tables.items():
                ours = table.shapes(preset)
                arrays = {n: np.empty(shape, nothing) for n, shape in ours.items()}
                theirs = table.save(Memory(arrays), preset).specs
                given = {n: np.empty(spec.shape, nothing) for n, spec in theirs.items()}
                back = table.load(Memory(given), preset).specs
                assert {n: spec.shape for n, spec in back.items()} == ours, (name, layout)
                assert table.recognised(theirs) == len(theirs), (name, layout)

    def test_a_release_in_parts_and_arrays_is_one_model(self) -> None:
        """What its arrays hold is read from no part, and everything else of the table is."""
        published = {n: table for n, table in self.spec.tables.items() if table.slices is not None}
        if not published:
            pytest.skip(f"{self.spec.name} was not published in the parts of a run")
        for layout, table in published.items():
            assert layout not in LAYOUTS and "{}" in table.slices.files
            for name, preset in self.spec.presets.items():
                theirs = {tensor for row in table.expand(preset) for tensor in row.theirs}
                skipped = {tensor for tensor in theirs if table.slices.skips(tensor)}
                assert skipped == set(table.slices.arrays.values()), name

    def test_the_network_has_the_shapes_of_the_tables(self, model: CausalLM) -> None:
        """Tables are written without the network; here the two meet."""
        actual = {name: tuple(p.shape) for name, p in model.named_parameters().items()}
        for layout in LAYOUTS:
            shapes = self.spec.tables[layout].shapes(model.config)
            assert {name: tuple(shape) for name, shape in shapes.items()} == actual

    def test_every_run_file_loads_and_survives_its_dump(self, tmp_path: Path) -> None:
        """The resolved run, written and read again, is the same run."""
        from lm_core.config.load import dump_run

        for name in self.spec.run_names():
            run = registry.read_run(name)
            written = tmp_path / f"{name}.yaml"
            written.write_text(dump_run(run), encoding="utf-8")
            assert dump_run(registry.read_run(written)) == dump_run(run), name

    def test_every_run_file_can_be_planned(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`lm plan`: memory of training and of generation, on the ranks that the file asks for."""
        from lm_core.cli import run_verb

        for name in self.spec.run_names():
            assert run_verb("plan", self.spec, ["--config", name]) == 0
            shown = capsys.readouterr().out
            asked = registry.read_run(name).degrees.world_size
            ranks = re.findall(r"^([\d,]+) ranks, rank = ", shown, re.MULTILINE)
            assert ranks == ([f"{asked:,}"] if asked > 1 else []), name
            assert [shown.count(f"\n{what}: ") for what in ("training", "generation")] == [1, 1]
            assert shown.count("\n  peak ") == 2, name

    # Weights.

    def test_saved_and_loaded_is_the_same(self, model: CausalLM, tmp_path: Path) -> None:
        """Bit for bit, through the format that we write."""
        from lm_core.auto import AutoModel

        model.save_pretrained(tmp_path / "saved")
        loaded = AutoModel.from_pretrained(tmp_path / "saved")
        assert loaded.config.copy(checkpoint_name_or_path="") == model.config
        assert_same(tiny.weights(loaded), tiny.weights(model))
        ids = tiny.token_ids(model.config.vocab_size, SHAPE)
        np.testing.assert_array_equal(logits_of(loaded, ids), logits_of(model, ids))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_tables_are_reversible(self, model: CausalLM, layout: str) -> None:
        """Ours, theirs, ours: no bit changes, and none of our numbers is lost on the way."""
        table, ours = self.spec.tables[layout], tiny.weights(model)
        theirs = _read(table.save(Memory(ours), model.config))
        back = _read(table.load(Memory(theirs), model.config))
        assert_same(back, ours)
        assert sum(a.size for a in theirs.values()) >= sum(a.size for a in ours.values())

    def test_loads_what_others_publish(self, model: CausalLM, tmp_path: Path) -> None:
        """config.json and safetensors under the original names."""
        from lm_core.auto import AutoModel

        loaded = AutoModel.from_pretrained(tiny.write_hf(model, self.spec, tmp_path / "hf"))
        assert_same(tiny.weights(loaded), tiny.weights(model))

    # Recorded references.

    @pytest.mark.parity
    def test_equals_the_recorded_reference(self, tmp_path: Path) -> None:
        """Logits, loss, gradients and greedy tokens of every case and every weight file of it."""
        from lm_core.auto import AutoModel

        cases = [path.parent for path in sorted((self.goldens or tmp_path).glob("*/golden.npz"))]
        if not cases:
            pytest.skip("this package has no recorded reference")
        for case in cases:
            with np.load(case / "golden.npz", allow_pickle=False) as golden:
                for weight_file in parity.golden_cases(case):
                    target = tmp_path / case.name / weight_file
                    built = AutoModel.from_pretrained(
                        parity.checkpoint_of(case, weight_file, target),
                        adapter=case / "adapter" if (case / "adapter").is_dir() else None,
                    )
                    built.set_train(False)
                    parity.check_forward(built, golden)
                    parity.check_gradients(built, golden)
                    parity.check_greedy(built, golden)


def _read(tensors: object) -> dict[str, np.ndarray]:
    from lm_core.checkpoint.layout import stream

    return dict(stream(tensors))  # type: ignore[arg-type]
