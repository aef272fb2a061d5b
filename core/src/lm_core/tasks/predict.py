"""`predict`: continues prompts with a trained model, or says their classes, and prints that."""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.config.flags import add_run_arguments, resolve_run, str2bool
from lm_core.errors import GenerationError, TokenizerError
from lm_core.log import get_logger

if TYPE_CHECKING:
    import numpy as np

    from lm_core.config.schema import RunConfig
    from lm_core.generation.infill import Gap
    from lm_core.pipeline import TextGenerationPipeline
    from lm_core.spec import ModelSpec

SETTINGS = {
    "max_length": (int, "most tokens of a prompt and its answer together"),
    "max_new_tokens": (int, "most tokens of an answer"),
    "do_sample": (str2bool, "draw each token instead of taking the most likely one"),
    "top_k": (int, "draw among the N most likely tokens (0: among all)"),
    "top_p": (float, "draw among the fewest tokens whose probabilities add up to X (1: among all)"),
    "temperature": (float, "divides the logits: above 1 more even odds, below 1 less even ones"),
    "repetition_penalty": (float, "above 1: less of what the text holds already (1: off)"),
    "num_beams": (int, "beam search with N beams (1: none)"),
    "truncation": (str, "left: drop the beginning of a prompt that is too long (classes: right)"),
}
"""Flags that go to the generation as they are; without one, `model.model_config` decides."""
_TAKES = {int: "N", float: "X", str: "SIDE", str2bool: "BOOL"}


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this verb, beside those that every run has."""
    add_run_arguments(parser)
    group = add_settings(parser, SETTINGS)
    group.add_argument(
        "--predict_batch_size", type=int, metavar="N", help="prompts that are computed at once"
    )
    add_export(group)
    group.add_argument("--stream", action="store_true", help="show each token as it comes")
    group.add_argument(
        "--infill", action="store_true", help="write what is missing at <FILL_ME> in each text"
    )


def add_settings(parser: ArgumentParser, names: Iterable[str]) -> Any:
    """Flags for these of SETTINGS and for the tokenizer; the group that holds them."""
    group = parser.add_argument_group(
        "generation", "Where a flag is left out, model.model_config decides."
    )
    for name in names:
        kind, text = SETTINGS[name]
        switch: dict[str, Any] = {"nargs": "?", "const": True} if kind is str2bool else {}
        group.add_argument(f"--{name}", type=kind, metavar=_TAKES[kind], help=text, **switch)
    group.add_argument(
        *("--tokenizer", "--vocab_file"),
        metavar="DIR",
        help="folder of the tokenizer, or its file there (default: the checkpoint's)",
    )
    return group


def add_export(group: Any) -> None:
    """Flags for graphs in place of weights."""
    group.add_argument(
        "--mindir",
        metavar="DIR",
        help="folder that `export` wrote: run its graphs instead of a checkpoint",
    )
    group.add_argument(
        "--lite", metavar="INI", help="run them with MindSpore Lite and these settings (untested)"
    )


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Prints `[{'text_generation_text': [text]}]` or `[{'label': name, 'score': p}]` per prompt."""
    settings = resolve_run(spec, args, [*overrides, *of_export(args)])
    data = settings.input_data or []
    texts = prompts([data] if isinstance(data, str) else data)
    options = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    if settings.model.config.is_classifier:
        return _classify(settings, args, texts, options)
    if settings.is_set("seed"):
        options["seed"] = settings.seed
    gaps = _gaps(texts, options) if args.infill else []
    generator = open_pipeline(settings, args, options)
    ids = _fitting(generator, _encoded(generator, texts, gaps))
    start = time.perf_counter()
    first = generator.model.context.rank == 0
    if args.stream and first:
        rows = _streamed(generator, ids, gaps)
    else:
        # Streamed rows are computed one by one, and so they must be on all ranks.
        size = 1 if args.stream else args.predict_batch_size or settings.predict_batch_size
        rows = generator.continue_ids(ids, batch_size=size)
    seconds = time.perf_counter() - start
    if not first:
        return 0  # all ranks have the same tokens; one says them
    lines = [repr([{"text_generation_text": [t]}]) for t in _texts(generator, rows, ids, gaps)]
    if not args.stream:
        print("\n".join(lines))
    _save(settings, lines)
    count = sum(len(row) - len(prompt) for row, prompt in zip(rows, ids, strict=True))
    get_logger(__name__).info(
        f"{len(texts)} prompt(s), {count} new tokens in {seconds:.1f} s, {count / seconds:.1f} "
        f"tokens/s, compilation of the graphs included"
    )
    return 0


def _classify(
    settings: RunConfig, args: Namespace, texts: list[str], options: dict[str, Any]
) -> int:
    """Prints the class of each text."""
    wrong = [name for name in options if name not in ("truncation", "top_k")]
    wrong += ["stream"] * args.stream + ["infill"] * args.infill
    if wrong:
        raise GenerationError(
            *(f"{name}: is for generated text; this model classifies; remove it" for name in wrong)
        )
    size = args.predict_batch_size or settings.predict_batch_size
    classifier = open_pipeline(settings, args, options)
    found = classifier(texts, batch_size=size)
    if classifier.model.context.rank > 0:
        return 0
    lines = [repr(item if isinstance(item, list) else [item]) for item in found]
    print("\n".join(lines))
    _save(settings, lines)
    return 0


def _save(settings: RunConfig, lines: list[str]) -> None:
    if settings.save_file:
        Path(settings.save_file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def open_pipeline(settings: RunConfig, args: Namespace, options: dict[str, Any]) -> Any:
    """The model of a run, this rank's part of it, with its tokenizer; `options` are defaults."""
    from lm_core import job
    from lm_core.auto import AutoTokenizer
    from lm_core.generation.config import GenerationConfig
    from lm_core.pipeline import pipeline

    config = settings.model.config
    if not config.is_classifier:
        GenerationConfig.from_model(config, **options)  # wrong flags need not wait for the weights
    if getattr(args, "mindir", None):
        return _open_export(settings, args, options)
    adapter = settings.load_adapter or None
    model = job.load(settings, weights_of(settings), job.join(settings), adapter=adapter)
    vocabulary = _vocabulary(settings, args, model)
    tokenizer = AutoTokenizer.from_pretrained(vocabulary, family=config)
    return pipeline(config.task, model, tokenizer, **options)


def weights_of(settings: RunConfig) -> str:
    """Where the weights of a run are.

    Raises:
        GenerationError: it names none.
    """
    found = settings.load_checkpoint or settings.model.config.checkpoint_name_or_path
    if not found:
        raise GenerationError(
            "load_checkpoint: is missing; must be the weights to use; add --load_checkpoint DIR"
        )
    return found


def of_export(args: Namespace) -> list[str]:
    """The degrees of the export that is to run, as overrides; none where weights are loaded.

    Raises:
        GenerationError: flags that are for weights.
    """
    if not args.mindir:
        if args.lite:
            raise GenerationError("lite: runs graphs; must have --mindir DIR; add it")
        return []
    from lm_core.export import description

    wrong = [name for name in ("config", "load_checkpoint", "load_adapter") if getattr(args, name)]
    if wrong:
        raise GenerationError(
            *(
                f"{name}: is with mindir, and an export has its own; remove one of the two"
                for name in wrong
            )
        )
    found = description.read(args.mindir)
    if found.model_parallel == 1 or args.lite:
        return []
    return [
        "use_parallel=True",
        f"parallel_config.model_parallel={found.model_parallel}",
        f"parallel_config.vocab_emb_dp={found.vocab_emb_dp}",
    ]


def _open_export(settings: RunConfig, args: Namespace, options: dict[str, Any]) -> Any:
    """As `open_pipeline`, of the graphs that `export` wrote."""
    from lm_core import job
    from lm_core.auto import AutoTokenizer
    from lm_core.export import description as described
    from lm_core.export.exported import ExportedModel
    from lm_core.generation.config import GenerationConfig
    from lm_core.pipeline import BATCH_SIZE, pipeline

    config = settings.model.config
    beams = GenerationConfig.from_model(config, **options).num_beams
    rows = described.read(args.mindir).batch_size
    asked = getattr(args, "predict_batch_size", None) or settings.predict_batch_size
    described.check_rows(rows, beams * (asked or 1))
    model = ExportedModel(
        args.mindir,
        config,
        context=job.join(settings),
        lite=args.lite,
        device_id=settings.context.device_id,
    )
    vocabulary = _vocabulary(settings, args, model)
    tokenizer = AutoTokenizer.from_pretrained(vocabulary, family=config)
    described.check_tokens(model.description, tokenizer.vocab_size, str(vocabulary))
    size = min(BATCH_SIZE, rows // beams)
    return pipeline(config.task, model, tokenizer, batch_size=size, **options)


def _vocabulary(settings: RunConfig, args: Namespace, model: Any) -> str | Path:
    """What the command or the run names, or else the folder that the weights came from.

    Raises:
        TokenizerError: that has none.
    """
    from lm_core.checkpoint.io import TOKENIZER_FILES

    if args.tokenizer:
        return args.tokenizer
    named = settings.processor.tokenizer.vocab_file
    if named:
        return Path(named).parent
    weights = Path(model.config.checkpoint_name_or_path)
    folder = weights.parent if weights.is_file() else weights
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise TokenizerError(
            f"tokenizer: {folder} has no vocabulary; must be a folder with one; add --tokenizer DIR"
        )
    return folder


def _gaps(texts: list[str], options: dict[str, Any]) -> list[Gap]:
    """What stands around the places to fill in.

    Raises:
        GenerationError: a text has no such place or several; something may cut the prompts.
    """
    from lm_core.generation.infill import read_gaps

    if options.get("truncation"):
        raise GenerationError(
            "truncation: would cut what tells the model where to fill in; must not be with infill; "
            "remove it, and shorten texts that are too long"
        )
    return read_gaps(texts)


def _encoded(
    generator: TextGenerationPipeline, texts: list[str], gaps: list[Gap]
) -> list[list[int]]:
    """The prompts; those of gaps make the token that ends an answer one that stops.

    Raises:
        TokenizerError: this vocabulary has no tokens for infilling.
        GenerationError: the model's has none.
    """
    from lm_core.generation.config import GenerationConfig

    tokenizer, config = generator.tokenizer, generator.model.config
    if not gaps:
        return tokenizer(texts)["input_ids"]
    ids = [tokenizer.build_infill_prompt(gap.prefix, gap.suffix) for gap in gaps]
    if tokenizer.infill_end_id >= config.vocab_size:
        raise GenerationError(
            f"infill: the tokenizer's token that ends it is {tokenizer.infill_end_id}; must be "
            f"within the model's vocabulary of {config.vocab_size}; use weights and tokenizer of "
            f"one model"
        )
    own = GenerationConfig.from_model(config, **generator.defaults).completed(config).eos_ids
    generator.defaults["eos_token_id"] = [*own, tokenizer.infill_end_id]
    return ids


def _fitting(generator: TextGenerationPipeline, rows: list[list[int]]) -> list[list[int]]:
    """The encoded prompts, cut where that was asked for; a text without tokens begins with BOS."""
    from lm_core.generation.config import GenerationConfig
    from lm_core.generation.prompts import fit, read_prompts

    config = generator.model.config
    settings = GenerationConfig.from_model(config, **generator.defaults).completed(config)
    bos = config.bos_token_id
    read = read_prompts(rows, None, vocab_size=config.vocab_size, bos=bos, pad=None)
    return [row.tolist() for row in fit(read, settings, config.seq_length)[0]]


def _texts(
    generator: TextGenerationPipeline, rows: list[Any], ids: list[list[int]], gaps: list[Gap]
) -> list[str]:
    """Prompts and answers; of gaps, the whole texts."""
    if not gaps:
        return [generator.decode(row) for row in rows]
    answers = [row[len(prompt) :] for row, prompt in zip(rows, ids, strict=True)]
    pairs = zip(gaps, answers, strict=True)
    return [gap.filled(generator.tokenizer, answer) for gap, answer in pairs]


def _streamed(
    generator: TextGenerationPipeline, ids: list[list[int]], gaps: list[Gap]
) -> list[np.ndarray]:
    from lm_core.generation.infill import InfillStreamer
    from lm_core.generation.streamer import TextStreamer

    streamers = [InfillStreamer(generator.tokenizer, gap) for gap in gaps]
    plain = TextStreamer(generator.tokenizer)
    pairs = zip(ids, streamers or [plain] * len(ids), strict=True)
    return [generator.continue_ids([row], streamer=streamer)[0] for row, streamer in pairs]


def prompts(data: list[str]) -> list[str]:
    r"""The prompts that `--predict_data` means.

    A single value that names a file gives a prompt per line that is not empty. The two characters
    `\n` in a prompt are a line break.

    Raises:
        GenerationError: nothing to continue.
    """
    if len(data) == 1 and os.path.isfile(data[0]):
        data = [line for line in _read(data[0]).splitlines() if line.strip()]
    if not data:
        raise GenerationError(
            "predict_data: holds no prompt; must be texts or a file with a prompt per line; add one"
        )
    return [text.replace("\\n", "\n") for text in data]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise GenerationError(
            f"predict_data: {path} is not UTF-8 at byte {error.start}; must be text; convert it"
        ) from None
