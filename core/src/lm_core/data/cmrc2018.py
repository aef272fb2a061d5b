"""CMRC2018, and other questions about texts in SQuAD's form: prompts, and all answers of each.

    阅读文章：{context}
    问：{question}
    答：

A record holds a prompt, `input_ids` [max_length], filled up on the right, and its different
answers, `labels` [A]: one after the other, each with the token that ends a text behind it, then
filled up. A is what the longest row of the file needs: labels are no targets of the ids, so they
are not as long as these.

Before a prompt may stand demonstrations of the same form, each with an answer: from another file,
never from a context of the questions. Which ones is drawn as in MindFormers (NumPy's generator,
seed 666), so that the same files give the same prompts.

A prompt that leaves no room for an answer keeps its end, and so the question: the hundreds of
tokens that leave another hundred, as in MindFormers. (Its rule keeps no number of tokens below a
max_length of 200, and leaves prompts whole that have room for 5.)
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lm_core.config.flags import positive
from lm_core.data.preprocess import Counts, Item, Preprocessor, find_inputs, gathered, reasons
from lm_core.data.squad import Question, read_questions
from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row
    from lm_core.tokenizer.base import Tokenizer

COLUMNS = ("input_ids", "labels")
SUFFIXES = (".json",)
ROOM = 32
"""Tokens that an answer may have: `max_new_tokens` of the run that evaluates."""
SHOTS = {"zero_shot": 0, "one_shot": 1, "five_shot": 5}
# Characters of an item: 0.1 s of work for words of Chinese, so that processes end together.
_ITEM = 1 << 15
_SEED = 666
_LONGEST = {1: 400, 5: 80}
"""Characters that a demonstration must stay below, by how many there are."""
_QUESTION = "\n问："


class Encoded(NamedTuple):
    """Ids of a prompt and of its answers."""

    prompt: np.ndarray
    answers: list[list[int]]


def _prompt(context: str, question: str) -> str:
    return f"阅读文章：{context}{_QUESTION}{question}\n答："


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of questions about texts."""
    add = parser.add_argument
    add("--train_file", metavar="FILE", help="where demonstrations are taken from")
    add(
        "--n_shot",
        choices=[*SHOTS],
        default="zero_shot",
        help="demonstrations before each question: none (default), one with its whole context, or "
        "five with a sentence each",
    )
    add(
        "--max_length",
        type=positive,
        default=1024,
        metavar="N",
        help="ids of a record, at most the model's seq_length (default: 1024)",
    )
    add(
        "--n_content",
        type=positive,
        default=500,
        metavar="N",
        help="use the first N contexts (default: 500)",
    )
    add(
        "--n_q",
        type=positive,
        default=100,
        metavar="N",
        help="use the first N questions about each (default: 100)",
    )


def check_flags(args: Namespace) -> Sequence[str]:
    """The columns. Raises DataError if a flag is impossible."""
    found = []
    if args.max_length < 2 * ROOM:
        found.append(
            f"max_length: is {args.max_length}; must be at least {2 * ROOM}, of which {ROOM} are "
            f"left for an answer; raise it"
        )
    if SHOTS[args.n_shot] and not args.train_file:
        found.append(
            f"train_file: is missing; must be the file that the demonstrations of {args.n_shot} "
            f"are taken from; add --train_file FILE, or use --n_shot zero_shot"
        )
    if found:
        raise DataError(*found)
    return COLUMNS


def read(
    files: Sequence[Path], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Item]:
    """Items of prompts with their answers."""
    if tokenizer.eos_token_id is None:
        raise DataError("tokenizer: has no eos_token to end answers; must have one; name it")
    other = find_inputs([args.train_file], SUFFIXES, "train_file") if args.train_file else []
    _check_apart(files, other)
    groups = [group for file in files for group in read_questions(file, counts)]
    asked = [one for group in groups[: args.n_content] for one in group[: args.n_q]]
    counts["contexts"] = len({one.context for one in asked})
    if not asked:
        raise DataError(
            f"dev_file: has no question with an answer ({reasons(counts)}); must be questions in "
            f"SQuAD's form (test files are published without answers); name another file"
        )
    shots = _shots(other, {one.context for group in groups for one in group}, args, counts)
    size = sum(file.stat().st_size for file in files) // len(asked)
    return gathered(_pieces(asked, shots, size), _ITEM)


def _pieces(
    asked: Sequence[Question], shots: Shots, size: int
) -> Iterator[tuple[tuple[str, Sequence[str]], int, int]]:
    for one in asked:
        prompt = _prompt(one.context, one.question)
        whole = shots.before(prompt) + prompt
        yield (whole, one.answers), len(whole), size


def _check_apart(files: Sequence[Path], other: Sequence[Path]) -> None:
    for file in other:
        if any(file.samefile(one) for one in files):
            raise DataError(
                f"train_file: {file} is the dev_file too; demonstrations must come from another "
                f"file, or answers are given away; name the training data"
            )


class Shots:
    """Draws demonstrations for one prompt after the other.

    Args:
        pools: demonstrations, by how many of them are drawn at once.
        count: how many are wanted.
        longest: characters of a record.
    """

    def __init__(self, pools: Mapping[int, Sequence[str]], count: int, longest: int) -> None:
        self._pools, self._count, self._longest = pools, count, longest
        self._generator = np.random.RandomState(_SEED)

    def before(self, prompt: str) -> str:
        """What stands before a prompt; what would make it too long is left out."""
        found = ""
        for count, pool in self._pools.items():
            # Those that are not wanted are drawn, too: they move the generator on.
            for number in self._generator.choice(len(pool), count) if pool else ():
                room = self._longest - len(prompt) - 10 - len(found)
                one = str(pool[number])
                if count == self._count and len(one) < room:
                    found += one
        return found


def _shots(
    files: Sequence[Path], contexts: Collection[str], args: Namespace, counts: Counts
) -> Shots:
    """What draws demonstrations, none from the contexts of the questions."""
    count = SHOTS[args.n_shot]
    if not count:
        return Shots({}, 0, 0)
    given = [one for file in files for about in read_questions(file, counts) for one in about]
    others = [one for one in given if one.context not in contexts]
    if same := len(given) - len(others):
        counts["demonstrations left out, of a context in dev_file"] = same
    pools = {
        1: _short(((one.context, one) for one in others), 1),
        5: _short(_sentences(others), 5),
    }
    if not pools[count]:
        raise DataError(
            f"train_file: has no demonstration below {_LONGEST[count]} characters for "
            f"{args.n_shot} ({reasons(counts)}); must have questions in SQuAD's form about short "
            f"texts; name another file, or use --n_shot zero_shot"
        )
    counts["demonstrations to draw from"] = len(pools[count])
    return Shots(pools, count, args.max_length)


def _sentences(questions: Iterable[Question]) -> Iterator[tuple[str, Question]]:
    """The sentences of contexts that hold the answer of a question."""
    for one in questions:
        for sentence in sentences(one.context):
            if one.answers[0] in sentence:
                yield sentence, one


def _short(parts: Iterable[tuple[str, Question]], count: int) -> list[str]:
    """Demonstrations: questions about some text, with the first answer."""
    texts = (f"{_prompt(text, one.question)}{one.answers[0]}\n" for text, one in parts)
    return [text for text in texts if len(text) < _LONGEST[count]]


def sentences(text: str) -> list[str]:
    """A text cut behind the marks that end sentences, and behind quotation marks after these."""

    def broken(match: re.Match[str]) -> str:
        return f"{match[0][:-1]}\n{match[0][-1]}"

    text = re.sub("[。！？?][^”’]", broken, text)
    return re.sub("[。！？?][”’][^，。！？?]", broken, text).rstrip().split("\n")


def encode(
    tokenizer: Tokenizer, args: Namespace, work: Sequence[tuple[str, Sequence[str]]]
) -> list[Encoded]:
    """Encodes some prompts and their answers, whole."""
    return [
        Encoded(
            np.array(_ids(tokenizer, prompt), np.int32),
            [_ids(tokenizer, answer) for answer in answers],
        )
        for prompt, answers in work
    ]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def records(
    encoded: Iterator[list[Encoded]], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Row]:
    """Rows of one question each, and the counts of them."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id or 0
    assert end is not None, "read looks for it"
    longest = "tokens of the longest prompt"
    questions = [one for item in encoded for one in item]
    labels = [[index for ids in one.answers for index in (*ids, end)] for one in questions]
    width = max(map(len, labels))
    for (prompt, answers), label in zip(questions, labels, strict=True):
        kept = fitting(prompt, args.max_length)
        counts["records"] += 1
        counts["tokens"] += len(prompt)
        counts["answers"] += len(answers)
        counts[longest] = max(counts[longest], len(prompt))
        if len(kept) < len(prompt):
            counts["prompts without their beginning"] += 1
            counts["tokens cut off"] += len(prompt) - len(kept)
        yield {
            "input_ids": _filled(kept, args.max_length, pad),
            "labels": _filled(label, width, pad),
        }


def fitting(prompt: np.ndarray, length: int) -> np.ndarray:
    """A prompt, or the end of one that leaves too little of `length` tokens for an answer."""
    if len(prompt) <= length - ROOM:
        return prompt
    hundreds = 100 * (length // 100 - 1)
    return prompt[-(hundreds if hundreds > 0 else length - ROOM) :]


def _filled(ids: Sequence[int] | np.ndarray, length: int, pad: int) -> np.ndarray:
    row = np.full(length, pad, np.int32)
    row[: len(ids)] = ids
    return row


def prompt_of(row: Row, tokenizer: Tokenizer) -> list[int]:
    """The prompt of a record, without padding."""
    return _stripped(row["input_ids"].tolist(), tokenizer)


def answers_of(row: Row, tokenizer: Tokenizer) -> list[list[int]]:
    """The answers of a record, without their ends and without padding."""
    found: list[list[int]] = [[]]
    for index in row["labels"].tolist():
        if index == tokenizer.eos_token_id:
            found.append([])
        else:
            found[-1].append(index)
    return [ids for ids in (_stripped(part, tokenizer) for part in found) if ids]


def _stripped(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    pad, end = tokenizer.pad_token_id or 0, len(ids)
    while end and ids[end - 1] == pad:
        end -= 1
    return ids[:end]


def question_in(prompt: str, tokenizer: Tokenizer) -> str:
    """The question of a decoded prompt; the whole prompt where none is found."""
    mark = str(tokenizer.decode(_ids(tokenizer, _QUESTION)))  # as it is spelt in prompts
    _, found, rest = prompt.rpartition(mark)
    return rest[: rest.rfind("\n")] if found and "\n" in rest else prompt


CMRC2018 = Preprocessor(
    help="questions about texts in SQuAD's form, such as CMRC2018, to be answered",
    suffixes=SUFFIXES,
    add_arguments=add_arguments,
    columns=check_flags,
    read=read,
    encode=encode,
    records=records,
    inputs=("--dev_file",),
)
