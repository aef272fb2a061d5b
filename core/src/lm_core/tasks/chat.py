"""`chat`: a conversation with a model in the terminal, or with lines of a pipe as questions.

Where several processes compute the model, rank 0 alone knows the conversation; it gives the others
the ids of each prompt, and all generate the same tokens.
"""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from lm_core.config.flags import add_run_arguments, resolve_run
from lm_core.errors import GenerationError, TokenizerError
from lm_core.tasks.keyboard import CtrlC
from lm_core.tasks.predict import SETTINGS, add_export, add_settings, of_export, open_pipeline

if TYPE_CHECKING:
    from lm_core.config.schema import RunConfig
    from lm_core.spec import ModelSpec

FLAGS = tuple(name for name in SETTINGS if name != "truncation")


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this verb, beside those that every run has."""
    add_run_arguments(parser)
    group = add_settings(parser, FLAGS)
    add_export(group)
    group.add_argument("--system", metavar="TEXT", help="how the assistant is to behave")


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Answers until the input ends or `/quit`; 2 if a line of a pipe was refused."""
    if not spec.chat:
        raise TokenizerError(
            f"lm chat: {spec.name} has no chat format; must be a model that was trained to chat; "
            f"use another one, or `lm predict {spec.name}` to continue a text"
        )
    settings = resolve_run(spec, args, [*overrides, *of_export(args)])
    with CtrlC() as ctrl_c:
        with ctrl_c.watched():
            generator = _opened(settings, args)
        return _chat(generator, args.system or "", ctrl_c)


def _opened(settings: RunConfig, args: Namespace) -> Any:
    """The pipeline, with settings that are known to be right before weights are read."""
    from lm_core.generation.chat import chat_settings

    config = settings.model.config
    problems = []
    if config.is_classifier:
        problems.append(f"task: is {config.task}; must be text_generation to chat; remove it")
    if args.predict_data:
        problems.append("predict_data: is for `predict`; chat reads questions as input; remove it")
    if problems:
        raise GenerationError(*problems)
    options = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    if settings.is_set("seed"):
        options["seed"] = settings.seed
    chat_settings(config, **options)
    return open_pipeline(settings, args, options)


def _chat(generator: Any, system: str, ctrl_c: CtrlC) -> int:
    from lm_core.generation.chat import Answerer, chat_settings
    from lm_core.tasks.keyboard import Keyboard
    from lm_core.tasks.session import Peers, Session

    model, tokenizer = generator.model, generator.tokenizer
    settings = chat_settings(model.config, **generator.defaults)
    answerer, peers = Answerer(model, tokenizer, settings), Peers(model.context)
    if peers.several:
        # The launcher ends a conversation so; in an exchange or a compilation no handler runs well.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not peers.first:
        for ids in peers.prompts():
            answerer.generate(ids)
        return 0
    session = Session(answerer, peers, ctrl_c.pressed)
    if system:
        session.system(system)
        if session.refused:
            return 2
    keyboard = Keyboard(ctrl_c, peers.wait if peers.several else None)
    if keyboard.terminal:
        print(f"{answerer.longest} tokens of context; /help says more", file=sys.stderr)
    while (found := keyboard.message()) and session.take(*found):
        pass
    peers.end()
    return 2 if session.refused and not keyboard.terminal else 0
