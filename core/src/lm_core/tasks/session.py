"""What a user says in a chat: questions and commands, and what becomes of each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_core.checkpoint.atomic import new_file
from lm_core.errors import GenerationError, LmError
from lm_core.generation.chat import Answerer, AnswerStopped, AnswerStreamer
from lm_core.parallel.context import ParallelContext
from lm_core.tokenizer.messages import Conversation

HELP = '''\
/reset        forget the conversation; the system message stays
/system TEXT  say how the assistant is to behave; without TEXT: nothing any more
/history      show the conversation
/save FILE    write it to a new JSON file, or to the one it came from
/load FILE    go on with a saved one
/quit         end; so do Ctrl-D and Ctrl-C
Ctrl-C during an answer ends that answer; what was said of it counts.
""" begins and ends a message of several lines, or one that begins with /.'''
COMMANDS = ("reset", "system", "history", "save", "load", "help", "quit")
END = -1


class Peers:
    """The other processes that compute the same model; there may be none.

    Args:
        context: the place of this process.
    """

    def __init__(self, context: ParallelContext) -> None:
        self.context = context
        self.first, self.several = context.rank == 0, context.world_size > 1

    def give(self, ids: Sequence[int]) -> None:
        """Rank 0: lets all others compute these ids as well."""
        if self.several:
            self._shared(ids)

    def wait(self) -> None:
        """Rank 0: shows that it is there, as an exchange must not last for ever."""
        self.give([])

    def end(self) -> None:
        """Rank 0: there is nothing more."""
        self.give([END])

    def prompts(self) -> Iterator[list[int]]:
        """The others: what rank 0 gives, until the end."""
        while (ids := self._shared([])) != [END]:
            if ids:
                yield ids

    def _shared(self, ids: Sequence[int]) -> list[int]:
        from lm_core.parallel import collectives

        return collectives.shared(self.context, ids)


class Session:
    """A conversation that goes on. Answers go to stdout, what is said about it to stderr.

    Args:
        answerer: generates.
        peers: are given each prompt.
        stopped: whether the user wants the answer to end.

    Attributes:
        refused: whether anything was.
    """

    def __init__(self, answerer: Answerer, peers: Peers, stopped: Callable[[], bool]) -> None:
        self.answerer, self.peers, self.stopped = answerer, peers, stopped
        self.conversation = Conversation()
        self.refused = False
        self._skipped = 0
        self._file: Path | None = None

    def take(self, text: str, quoted: bool = False) -> bool:
        """Answers a question or obeys a command; whether the conversation goes on."""
        if not quoted and text.startswith("/"):
            return self._obey(*text[1:].partition(" ")[::2])
        if text:
            self._try(lambda: self._ask(text))
        return True

    def system(self, text: str) -> None:
        """Says how the assistant is to behave; "" for nothing."""
        self._try(lambda: self._change(Conversation(text, self.conversation.rounds)))

    def _obey(self, command: str, rest: str) -> bool:
        rest = rest.strip()
        if command in ("quit", "exit"):
            return False
        if command in ("save", "load") and (not rest or "\0" in rest):
            self._refuse(f"/{command}: names no file; must name one; write /{command} FILE")
        elif command == "reset":
            self._change(Conversation(self.conversation.system))
            self._file = None
        elif command == "system":
            self.system(rest)
        elif command == "save":
            self._try(lambda: self._save(Path(os.path.expanduser(rest))))
        elif command == "load":
            self._try(lambda: self._load(Path(os.path.expanduser(rest))))
        elif command == "history":
            for message in self.conversation.messages():
                print(f"{message['role']}: {message['content']}", flush=True)
        elif command == "help":
            print(HELP, flush=True)
        else:
            known = ", ".join(f"/{name}" for name in COMMANDS)
            self._refuse(f"/{command}: is no command; must be one of {known}; /help says more")
        return True

    def _ask(self, text: str) -> None:
        """Adds the round, unless the question is refused or the answer ends before it begins."""
        conversation = self.conversation
        conversation.question = text
        streamer = AnswerStreamer(self.answerer.tokenizer, self.stopped)
        stopped = False
        try:
            ids, skipped = self.answerer.prompt(conversation)
            self._note_skipped(skipped)
            self.peers.give(ids)
            self.answerer.generate(ids, streamer)
        except (AnswerStopped, KeyboardInterrupt):
            stopped = True
            self._say("stopped" if streamer.text else "stopped; the question is forgotten")
        finally:
            conversation.question = None
        if streamer.text or not stopped:
            conversation.rounds.append((text, streamer.text.strip()))

    def _note_skipped(self, count: int) -> None:
        if count > self._skipped:
            self._say(f"the context is full: the model no longer sees the first {count} round(s)")
        self._skipped = count

    def _change(self, new: Conversation) -> None:
        """Goes on with another conversation, if the model's format can hold it."""
        new.question = "?"
        self.answerer.tokenizer.apply_chat_template(new.messages())
        new.question = None
        self.conversation, self._skipped = new, 0

    def _save(self, path: Path) -> None:
        if os.path.exists(path) and self._file != path.resolve():
            raise GenerationError(f"/save: {path} is there already; must be new; name another file")
        text = json.dumps({"messages": self.conversation.messages()}, indent=2, ensure_ascii=False)
        try:
            with new_file(path) as scratch:
                scratch.write_text(text + "\n", encoding="utf-8", errors="replace")
        except OSError as error:
            raise GenerationError(
                f"{path}: cannot be written ({error.strerror}); name another file"
            ) from None
        self._file = path.resolve()
        self._say(f"saved {len(self.conversation.rounds)} round(s) to {path}")

    def _load(self, path: Path) -> None:
        self._change(read_conversation(path))
        self._file = path.resolve()
        self._say(f"loaded {len(self.conversation.rounds)} round(s) from {path}")

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except LmError as error:
            self._refuse(*error.problems)

    def _refuse(self, *problems: str) -> None:
        self.refused = True
        for problem in problems:
            print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr, flush=True)

    def _say(self, text: str) -> None:
        print(f"({text})", file=sys.stderr, flush=True)


def read_conversation(path: Path) -> Conversation:
    """A conversation that was saved.

    Raises:
        GenerationError: it cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GenerationError(f"{path}: cannot be read ({error.strerror}); name another") from None
    except (ValueError, RecursionError) as error:
        raise GenerationError(f"{path}: is not JSON ({error}); name a saved one") from None
    if not isinstance(found, dict) or "messages" not in found:
        raise GenerationError(f'{path}: has no "messages"; must be a saved conversation; name one')
    try:
        conversation = Conversation.of_messages(found["messages"])
    except LmError as error:
        raise GenerationError(*(f"{path}: {problem}" for problem in error.problems)) from None
    if conversation.question is not None:
        raise GenerationError(
            f"{path}: ends with a question; must end with an answer; remove the last message"
        )
    return conversation
