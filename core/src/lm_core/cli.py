"""The command line: `lm VERB MODEL ...`, which is `python -m lm_MODEL.VERB ...`; `lm models`.

Verbs that look at a run find its model in it, so theirs may be left out; those of PLAIN have none.

Starts fast: a verb's module is imported when its help is asked for, MindSpore when it runs.
"""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, NoReturn

from lm_core import __version__
from lm_core.config.flags import add_run_arguments, resolve_run, split_overrides, str2bool
from lm_core.errors import ConfigError, LmError
from lm_core.log import get_logger
from lm_core.parallel import machine

if TYPE_CHECKING:
    from lm_core.spec import ModelSpec

__all__ = ["add_run_arguments", "entry", "main", "resolve_run", "run_verb", "str2bool"]

VERBS = {
    "preprocess": "turn raw data into records",
    "pretrain": "train a model from scratch",
    "finetune": "train a model further",
    "evaluate": "score a model on records",
    "predict": "continue prompts",
    "chat": "talk to a model",
    "serve": "answer requests over HTTP as OpenAI's API does",
    "convert": "change the layout of a checkpoint",
    "export": "write a model as graphs (MindIR)",
    "transform": "split, merge or recut a checkpoint in parts",
    "merge": "fold an adapter into its base model",
    "config": "show every setting of a run and where it comes from",
    "plan": "show sizes, memory and ranks of a run",
}
FORMS = {("evaluate", "humaneval"): "count the programs of a model that pass (HumanEval, pass@k)"}
"""A word behind a verb that makes it another task: `lm evaluate MODEL humaneval`."""
WITH_RUN = (
    "pretrain", "finetune", "evaluate", "predict", "chat", "serve", "export", "config", "plan",
)  # fmt: skip
OF_A_RUN = ("config", "plan")
"""Verbs that take a run, `lm plan RUN` or `lm plan --config RUN`, as well as a model."""
EXAMPLES = {
    "pretrain": "--config {name}_tiny --train_dataset_dir my.mindrecord --output_dir output",
    "finetune": "--load_checkpoint output --train_dataset_dir my.mindrecord --output_dir tuned",
    "evaluate": "--load_checkpoint output --eval_dataset_dir my.mindrecord",
    "predict": '--load_checkpoint output --predict_data "Once upon a time" --max_new_tokens 50',
    "chat": '--load_checkpoint output --system "Be brief."',
    "serve": "--load_checkpoint output --port 8000",
    "convert": "--input output --output published --format hf",
    "export": "--load_checkpoint output --output_dir graphs",
    "transform": "--src_ckpt_dir output --dst_ckpt_dir cut parallel_config.model_parallel=2",
    "merge": "--load_checkpoint base --load_adapter output --output merged",
    "config": "--config {name}_tiny --changed",
    "plan": "--config {name}_tiny parallel_config.model_parallel=2",
    "checkpoint": "verify output",
    "preview": "my.mindrecord --tokenizer output",
}
"""What stands behind a verb, at the end of its help."""
PLAIN = {
    "checkpoint": "verify or list the checkpoints below a folder",
    "preview": "show records as text, the trained part marked",
    "doctor": "show what is installed, what is missing, and what the machine has",
}
"""Verbs that need no model."""


def entry() -> None:
    """The `lm` program."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line. The exit status: 0, 2 for the user's error, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(words))


def run_verb(verb: str, spec: ModelSpec, argv: Sequence[str] | None = None) -> int:
    """`python -m lm_MODEL.VERB`: like `lm VERB MODEL`."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(verb, spec, words, f"python -m lm_{spec.name}.{verb}"))


def run_tool(verb: str, argv: Sequence[str] | None = None) -> int:
    """A script that is a verb for every model; its input says which."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(verb, None, words, f"python {sys.argv[0]}"))


def guarded(call: Callable[[], int]) -> int:
    """Turns errors that a user can mend into lines on stderr; others keep their traceback."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        # While a graph runs MindSpore turns Ctrl-C into SIGTERM, which would end us without a word.
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, _stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, _stop)
    try:
        return _guarded(call)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    if _importing():
        threading.Thread(target=_stop_later, args=(number,), daemon=True).start()
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    print("interrupted", file=sys.stderr)
    sys.exit(128 + number)


def _importing() -> bool:
    """Whether MindSpore is being imported: an exception within that aborts the process."""
    module = sys.modules.get("mindspore")
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _stop_later(number: int) -> None:
    while _importing():
        time.sleep(0.02)
    os.kill(os.getpid(), number)


def _guarded(call: Callable[[], int]) -> int:
    try:
        return call()
    except LmError as error:
        lines = [" ".join(problem.split("\n")) for problem in error.problems]
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone; the interpreter would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.filename is None:
            raise
        lines = [
            f"{error.filename}: {error.strerror}; "
            f"check the path, its permissions and the space left"
        ]
    get_logger(__name__).debug("where it happened", exc_info=True)
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return 2


def _dispatch(words: list[str]) -> int:
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if verb in ("--version", "version"):
        print(f"lm {__version__}")
        return 0
    if verb == "models":
        return _models()
    if verb in PLAIN:
        return _run_plain(verb, words[1:])
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, [*VERBS, *PLAIN, "models"], n=1)
        hint = f"did you mean {near[0]}?" if near else "`lm --help` lists them"
        raise ConfigError(f"lm: {verb!r} is not a verb; {hint}")
    if verb in OF_A_RUN:
        words = _with_model(words)
    model = words[1] if len(words) > 1 else "--help"
    if model.startswith("-"):
        return _verb_without_model(verb, model)
    from lm_core import spec as registry

    found = registry.find(model)
    run_name = model if model in found.presets or model in found.run_names() else ""
    return _run(
        verb, found, words[2:], f"lm {verb} {model}", "" if model == found.name else run_name
    )


def _with_model(words: list[str]) -> list[str]:
    """`plan RUN ...` and `plan --config RUN ...` with the model that the run is for."""
    from lm_core import spec as registry

    verb, *rest = words
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    config = parser.parse_known_args(rest)[0].config
    first = rest[0] if rest else ""
    if registry.knows(first):
        return words
    if not config and first and not first.startswith("-") and "=" not in first:
        config, rest = first, ["--config", *rest]
    named = config and (first == config or first.startswith("-") or "=" in first)
    return [verb, registry.of_run(config).name, *rest] if named else words


def _verb_without_model(verb: str, word: str) -> int:
    from lm_core.spec import names

    known = ", ".join(names()) or "none; pip install lm-gpt2"
    if word in ("-h", "--help"):
        print(
            f"usage: lm {verb} {'MODEL_OR_RUN' if verb in OF_A_RUN else 'MODEL'} [...]\n\n"
            f"{VERBS[verb]}\n\nmodels: {known}\n"
            f"`lm {verb} MODEL --help` lists the flags."
        )
        return 0
    raise ConfigError(f"lm {verb}: the model is missing before {word}; name one first: {known}")


def _run(
    verb: str, spec: ModelSpec | None, words: list[str], program: str, run_name: str = ""
) -> int:
    task, says = _task(verb), VERBS[verb]
    if (verb, *words[:1]) in FORMS:
        task, says = _task(words[0]), FORMS[verb, words[0]]
        program, words = f"{program} {words[0]}", words[1:]
    parser = _parser(program, f"{spec.name}: {says}" if spec else says)
    if verb in WITH_RUN:
        add_run_arguments(parser)
    # A verb whose flags depend on the model takes the package as a second argument.
    task.add_arguments(*(parser, spec)[: len(signature(task.add_arguments).parameters)])
    _add_example(parser, verb if says == VERBS[verb] else "", spec.name if spec else "")
    # Scripts of model cards spell some commands in their own way.
    args, overrides = _parse(parser, getattr(task, "spelling", list)(words))
    if run_name and not getattr(args, "config", "given"):
        args.config = run_name
    check_numpy()
    return int(task.run(spec, args, overrides) or 0)


def _run_plain(verb: str, words: list[str]) -> int:
    task = _task(verb)
    parser = _parser(f"lm {verb}", PLAIN[verb])
    task.add_arguments(parser)
    _add_example(parser, verb)
    return int(task.run(_parse(parser, words)[0]) or 0)


def _add_example(parser: argparse.ArgumentParser, verb: str, name: str = "") -> None:
    if verb in EXAMPLES:
        example = f"Example:\n  {parser.prog} {EXAMPLES[verb].format(name=name)}"
        parser.epilog = f"{parser.epilog}\n\n{example}" if parser.epilog else example


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, as everything else does, and not with its usage."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        text = message.removeprefix("argument ")
        raise ConfigError(f"command line: {text}; `{self.prog} --help` lists the flags")


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        conflict_handler="resolve",  # a verb may say more about a common flag
    )


def _task(verb: str) -> ModuleType:
    name = f"lm_core.tasks.{verb}"
    if find_spec("lm_core.tasks") is None or find_spec(name) is None:
        raise ConfigError(
            f"lm {verb}: is not part of lm {__version__}; `lm models` lists the verbs that are"
        )
    return import_module(name)


def _parse(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    flags = [flag for action in parser._actions for flag in action.option_strings]
    overrides: list[str] = []
    if parser.get_default("takes_run"):
        words, overrides = split_overrides(words, flags)
    args, rest = parser.parse_known_args(words)
    wrong: list[str] = []
    for before, word in zip(["", *rest], rest, strict=False):
        if before.startswith("--") and "=" not in before and not word.startswith("-"):
            continue  # what was meant to be the value of a flag that there is not
        if parser.get_default("takes_run") and "=" in word and not word.startswith("-"):
            overrides.append(word)
        else:
            near = difflib.get_close_matches(word.partition("=")[0], flags, n=1)
            hint = f"did you mean {near[0]}?" if near else f"`{parser.prog} --help` lists the flags"
            wrong.append(f"command line: {word}: unknown argument; {hint}")
    if wrong:
        raise ConfigError(*wrong)
    return args, overrides


def check_numpy() -> None:
    """Raises ConfigError where NumPy is one that MindSpore fails with."""
    problem = machine.numpy_problem()
    if problem:
        raise ConfigError(problem)


def _verbs() -> list[str]:
    return [verb for verb in (*VERBS, *PLAIN) if find_spec(f"lm_core.tasks.{verb}")]


def _usage() -> str:
    from lm_core.spec import names

    known = VERBS | PLAIN
    verbs = "\n".join(f"  {verb:<12}{known[verb]}" for verb in _verbs())
    return (
        f"usage: lm VERB MODEL [--config NAME_OR_FILE] [...]\n\nverbs:\n{verbs}\n"
        f"  {'models':<12}list installed models and their sizes\n\n"
        f"models: {', '.join(names()) or 'none; pip install lm-gpt2'}\n\n"
        f"`lm VERB MODEL --help` lists the flags; `python -m lm_MODEL.VERB` is the same command.\n"
        f"{', '.join(PLAIN)} take no MODEL; {', '.join(OF_A_RUN)} need none beside a run."
    )


def _models() -> int:
    from lm_core.spec import installed

    for name, spec in installed().items():
        print(f"{name}  (lm-{name} {machine.version(f'lm-{name}') or 'no distribution'})")
        width = max(map(len, spec.presets))
        for preset, config in spec.presets.items():
            count = _count(config.parameter_count())
            print(
                f"  {preset:<{width}}{count:>7} parameters  "
                f"{config.num_layers} layers x {config.hidden_size}, "
                f"{config.num_heads} heads, {config.seq_length} tokens"
            )
        print(f"  runs: {', '.join(spec.run_names())}")
    print(f"verbs: {', '.join(_verbs())}")
    return 0


def _count(number: int) -> str:
    """124439808 -> "124M"."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


if __name__ == "__main__":
    entry()
