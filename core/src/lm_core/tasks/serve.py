"""`serve`: answers requests over HTTP as OpenAI's API does, many at a time."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_core.config.flags import add_run_arguments, positive, resolve_run
from lm_core.errors import ConfigError, GenerationError
from lm_core.log import get_logger
from lm_core.tasks.predict import SETTINGS, add_settings, open_pipeline

if TYPE_CHECKING:
    import socket

    from lm_core.config.schema import RunConfig
    from lm_core.generation.config import GenerationConfig
    from lm_core.serving.server import Place
    from lm_core.spec import ModelSpec

FLAGS = tuple(name for name in SETTINGS if name not in ("truncation", "num_beams"))
KEY = "LM_API_KEY"
"""The environment variable with the key; on a command line everybody on the machine reads it."""
NEEDED = ("starlette", "uvicorn")


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of this verb, beside those that every run has."""
    add_run_arguments(parser)
    add_settings(parser, FLAGS)
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="address to listen on (default: %(default)s)",
    )
    group.add_argument(
        "--port",
        type=_port,
        default=8000,
        metavar="N",
        help="port to listen on; 0: any free one (default: %(default)s)",
    )
    group.add_argument(
        "--api_key_file",
        metavar="FILE",
        help=f"file with the key that clients must send (or set {KEY})",
    )
    group.add_argument(
        "--model_name",
        metavar="NAME",
        help="what clients call the model (default: trainer.model_name)",
    )
    for name, default, text in (
        ("max_batch", 8, "requests computed at once"),
        ("max_queue", 256, "requests that may wait for their turn"),
        ("max_body", 1 << 20, "most bytes of a request"),
        ("request_timeout", 600, "seconds from a request to the end of its answer"),
        ("drain_timeout", 60, "seconds that running requests get after SIGTERM"),
    ):
        group.add_argument(
            f"--{name}",
            type=positive,
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )


def run(spec: ModelSpec, args: Namespace, overrides: list[str]) -> int:
    """Answers until SIGTERM or Ctrl-C."""
    settings = resolve_run(spec, args, overrides)
    place = _checked(settings, args)
    options = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    key = _key(args)
    if key is None and not place.is_local:
        raise ConfigError(
            f"host: {place.host} can be reached from other machines; must have a key then; set "
            f"{KEY} or --api_key_file, or use 127.0.0.1"
        )
    bound = place.bound()
    try:
        args.model_name = args.model_name or settings.trainer.model_name or spec.name
        return _serve(spec, settings, args, options, key, bound)
    finally:
        bound.close()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"{text!r} is no port; use 0 to 65535")
    return int(text)


def _checked(settings: RunConfig, args: Namespace) -> Place:
    """Where to listen; what cannot be is said before weights are read."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serve: {' and '.join(missing)} is not installed; must be there to serve; "
            f"pip install 'lm-core[serve]'"
        )
    from lm_core.serving.server import Place

    config = settings.model.config
    problems = []
    if config.is_classifier:
        problems.append(f"task: is {config.task}; must be text_generation to serve; remove it")
    if settings.use_parallel:
        problems.append("use_parallel: is true; must be false to serve, which one process does")
    if args.predict_data:
        problems.append("predict_data: is for `predict`; a server reads requests; remove it")
    if settings.is_set("seed"):
        problems.append("seed: is a matter of each request here; must not be set; remove it")
    if problems:
        raise GenerationError(*problems)
    return Place(host=args.host, port=args.port)


def _key(args: Namespace) -> bytes | None:
    """What clients have to show."""
    if args.api_key_file:
        path = Path(args.api_key_file).expanduser()
        key, where = path.read_text(encoding="utf-8").strip(), str(path)
    elif KEY in os.environ:
        key, where = os.environ[KEY].strip(), KEY
    else:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{where}: holds no key; must be one word in ASCII; write one there")
    return key.encode()


def _own(config: Any, options: dict[str, Any]) -> GenerationConfig:
    """Settings of requests that say nothing; beams cannot be computed as requests come and go.

    Raises:
        GenerationError: they cannot be.
    """
    from lm_core.generation.config import GenerationConfig

    settings = GenerationConfig.from_model(config, **{**options, "num_beams": 1})
    room = min(settings.max_length or config.seq_length, config.seq_length)
    if room < 2:
        raise GenerationError(f"max_length: {room}; must be at least 2, a prompt and an answer")
    settings.max_length, settings.max_new_tokens = room, None
    return settings.completed(config)


def _serve(
    spec: ModelSpec,
    settings: RunConfig,
    args: Namespace,
    options: dict[str, Any],
    key: bytes | None,
    bound: socket.socket,
) -> int:
    _own(settings.model.config, options)
    generator = open_pipeline(settings, args, options)
    from lm_core.generation.slots import Slots
    from lm_core.serving import server
    from lm_core.serving.app import LOCAL, build
    from lm_core.serving.calls import Limits, Service
    from lm_core.serving.engine import Engine

    model = generator.model
    own = _own(model.config, options)
    assert own.max_length is not None, "completed settings say it"
    engine = Engine(Slots(model, args.max_batch, own.max_length), args.max_queue)
    limits = Limits(
        new_tokens=options.get("max_new_tokens"), body=args.max_body, seconds=args.request_timeout
    )
    named = (args.model_name, limits, spec.chat)
    service = Service(engine, generator.tokenizer, model.config, own, *named)
    hosts = LOCAL | {args.host} if key is None else None
    log = get_logger(__name__)
    log.info(f"compiling; {args.max_batch} requests at once, {own.max_length} tokens each")
    engine.start()
    bound.listen()  # whoever reads the next line may connect
    log.info(f"serving {args.model_name} at {server.url_of(bound)}/v1 (Ctrl-C ends it)")
    server.run(build(service, key, hosts), engine, bound, args.drain_timeout)
    return 0
