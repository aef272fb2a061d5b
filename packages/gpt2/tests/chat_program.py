"""`lm chat gpt2`, were GPT-2 trained to chat: a program for tests of the verb with a real model."""

from __future__ import annotations

import dataclasses
import sys

from lm_core import cli
from lm_core import spec as registry
from lm_core.tokenizer.messages import Conversation
from lm_gpt2 import SPEC
from lm_gpt2.tokenizer import Gpt2Tokenizer


class Chatty(Gpt2Tokenizer):
    """A question and its answer are a line each."""

    def apply_chat_template(self, messages, add_generation_prompt=True):
        talk = Conversation.of_messages(messages)
        texts = [talk.system, *(text for pair in talk.rounds for text in pair), talk.question or ""]
        return self.encode("\n".join(texts) + "\n", split_special_tokens=True)


CHATTY = dataclasses.replace(SPEC, chat=True, tokenizer=Chatty.from_pretrained)

if __name__ == "__main__":
    registry.installed = lambda: {"gpt2": CHATTY}
    raise SystemExit(cli.run_verb("chat", CHATTY, sys.argv[1:]))
