"""`export`: writes a model as graphs (MindIR) that run without the code that made them."""

from __future__ import annotations

import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.config.flags import add_run_arguments, positive, resolve_run
from lm_core.errors import ConfigError, TokenizerError, all_of
from lm_core.log import byte_count

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.export.description import Description
    from lm_core.nn.network import Network
    from lm_core.parallel.context import ParallelContext
    from lm_core.spec import ModelSpec

FOLDER = "mindir"
"""Below the output of a run that says where it writes; --output_dir is the export's own folder."""

EPILOG = """\
Writes prefill.mindir, which reads whole prompts, and increment.mindir, which adds a token to each
row; with --dynamic append.mindir, which does both for any number of tokens. Above 1 GB of weights
MindSpore puts these into a folder beside each graph. `predict --mindir DIR` runs them.

Graphs are made for the device of this machine: export where they are to run. Several processes
(parallel_config.model_parallel) write a folder rank_R each.

Of fixed sizes, lite.ini and run_lite.sh are for MindSpore Lite. That is untested, since there is no
package of it to test with; the graphs are tested with MindSpore on a CPU."""


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this verb, beside those that every run has."""
    add_run_arguments(parser)
    group = parser.add_argument_group("export")
    group.add_argument("--batch_size", metavar="N", help="rows of a call (1)")
    group.add_argument("--output_dir", metavar="DIR", help="folder of the export (output/mindir)")
    group.add_argument(
        "--seq_length",
        type=positive,
        metavar="N",
        help="longest prompt + answer, in tokens (that of the run)",
    )
    group.add_argument(
        "--dynamic",
        action="store_true",
        help="one graph of open sizes: any number of tokens, and of rows up to --batch_size",
    )
    group.add_argument(
        *("--tokenizer", "--vocab_file"),
        metavar="DIR",
        help="folder of the vocabulary that goes with the graphs (the checkpoint's)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    parser.epilog = f"{EPILOG}\n\n{parser.epilog}"


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Exports and says what was written.

    Raises:
        ConfigError: sizes or degrees that cannot be.
        CheckpointError: no weights, wrong ones, or an output that cannot be written.
    """
    settings = resolve_run(spec, args, overrides)
    from lm_core.export import description
    from lm_core.trainer import Trainer

    folder = Trainer(settings, tokenizer=args.tokenizer).export(
        output_dir=args.output_dir,
        batch_size=settings.runner_config.batch_size if args.batch_size else None,
        seq_length=args.seq_length,
        dynamic=args.dynamic,
        overwrite=args.overwrite,
    )
    made = description.read(folder)
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    size = sum({one.st_ino: one.st_size for one in found}.values())  # one file may have two names
    kind = "of open sizes" if made.dynamic else "fixed"
    print(
        f"{folder}: {byte_count(size)}, {kind}: {made.batch_size} row(s) of "
        f"{made.seq_length} tokens"
    )
    return 0


def write(
    run: RunConfig,
    target: Path,
    weights: Callable[[], str | Path],
    network: Network | None,
    vocabulary: str | Path | None,
    sizes: Mapping[str, Any],
    overwrite: bool,
) -> Path:
    """Writes an export of a run's model.

    Args:
        run: the run.
        target: the folder of the export.
        weights: says where the weights are, "" for those of `network`, or raises.
        network: the model in memory, where there is one.
        vocabulary: the folder of the one that goes with the graphs; None: that of the run, or else
            that beside the weights.
        sizes: `batch_size`, `seq_length` (None: those of the run) and `dynamic`.
        overwrite: replace an export that is there.

    Returns:
        the folder of this rank's part.

    Raises:
        LmError: what is known to be wrong before anything is loaded; or what the weights are.
    """
    from lm_core import job
    from lm_core.checkpoint import atomic
    from lm_core.export.folder import place

    run = run.model_copy(deep=True)
    found, description = all_of(weights, lambda: _description(run, **sizes))
    atomic.check_target(target, overwrite)
    context = job.join(run)
    description.rank = context.rank
    with place(target, context, overwrite) as folder:
        model = _loaded(run, found, context, folder / "recut") if found else network
        assert model is not None
        _fill(folder, run, model, vocabulary, description)
    return target / f"rank_{context.rank}" if context.world_size > 1 else target


def _description(
    settings: RunConfig, *, batch_size: int | None, seq_length: int | None, dynamic: bool
) -> Description:
    """What is to be exported; rotary models get room for longer sequences than the run's.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    from lm_core.checkpoint import hub
    from lm_core.export.description import Description

    config = settings.model.config
    infer = settings.infer
    named = infer.infer_seq_length if infer and infer.is_set("infer_seq_length") else None
    length = (named or config.seq_length) if seq_length is None else seq_length
    settings.model.config = config.widened(length)
    degrees, problems = config.parallel_config, []
    if length > settings.model.config.seq_length:
        problems.append(
            f"seq_length: is {length}; must be at most the model's {config.seq_length}, which has "
            f"learned no more positions; lower it"
        )
    if config.is_classifier:
        problems.append(f"task: is {config.task}; must be text_generation to export; remove it")
    if degrees.data_parallel > 1:
        problems.append(
            f"parallel_config.data_parallel: is {degrees.data_parallel}; must be 1 to export, as "
            f"replicas have the same graph; set it to 1"
        )
    if problems:
        raise ConfigError(*problems)
    return Description(
        model=hub.family_of(config).name,
        batch_size=config.batch_size if batch_size is None else batch_size,
        seq_length=length,
        dynamic=dynamic or config.is_dynamic,
        model_parallel=degrees.model_parallel,
        vocab_emb_dp=degrees.vocab_emb_dp,
    )


def _loaded(run: RunConfig, weights: str | Path, context: ParallelContext, scratch: Path) -> Any:
    """This rank's part of the model, merged or cut where it lies in parts."""
    from lm_core.auto import AutoModel
    from lm_core.checkpoint.source import Recut

    model = AutoModel.from_pretrained(
        weights,
        config=run.model.config,
        context=context,
        adapter=run.load_adapter or None,
        recut=Recut(True, scratch, run.src_strategy_path_or_dir),
    )
    shutil.rmtree(scratch, ignore_errors=True)
    return model


def _fill(
    folder: Path,
    run: RunConfig,
    model: Any,
    vocabulary: str | Path | None,
    description: Description,
) -> None:
    from lm_core.export.folder import fill
    from lm_core.tasks.evaluate import room

    named = vocabulary or run.processor.tokenizer.vocab_file
    files = _carried(named, model.config.checkpoint_name_or_path)
    description.tokens = _tokens(files, model.config)
    with room(model, description.seq_length):
        fill(folder, model, description, files)


def _carried(named: str | Path | None, source: str) -> dict[str, Path]:
    """The tokenizer and generation files that go with the graphs.

    Raises:
        TokenizerError: `named` has no vocabulary.
    """
    from lm_core.checkpoint import io

    weights = Path(source)
    found = io.carried_files(weights.parent if weights.is_file() else weights) if source else {}
    if not named:
        return found
    folder = Path(named).parent if Path(named).is_file() else Path(named)
    given = io.carried_files(folder)
    if not set(given) & set(io.TOKENIZER_FILES):
        raise TokenizerError(
            f"tokenizer: {folder} has no vocabulary; must be a folder with one; change --tokenizer"
        )
    defaults = {name: path for name, path in found.items() if name not in io.TOKENIZER_FILES}
    return {**defaults, **given}


def _tokens(files: dict[str, Path], config: Any) -> int | None:
    """The size of the vocabulary among these files; None where there is none."""
    from lm_core.auto import AutoTokenizer
    from lm_core.checkpoint.io import TOKENIZER_FILES

    found = [path for name, path in files.items() if name in TOKENIZER_FILES]
    if not found:
        return None
    return AutoTokenizer.from_pretrained(found[0].parent, family=config).vocab_size
