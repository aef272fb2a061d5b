"""TNEWS, and other labelled texts, to records of prompts: which label makes a text most likely?

A record is one text behind several prompts, each of which names another label:

    shots <newline> 这是关于 体育 的文章： text | padding
    shots <newline> 这是关于 财经 的文章： text | padding

`input_ids` and `attention_mask` are these rows of S ids one after the other, `labels` [1] is the
number of the row with the true label. The mask is 1 at the ids of the text, which are scored, and
nowhere else. Whole rows are encoded, so their ids are those that a reader of the whole would see;
the text begins where they first differ from the ids of the prompt alone. An id that spans the end
of the prompt and the beginning of the text is therefore scored. The first id of a row never is,
since nothing stands before it. (MindFormers counts words there, and its ids are pieces of words.)

S is the longest row of the file, at most max_length: headlines have 30 ids, not 1024.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lm_core.config.flags import positive
from lm_core.data.jsonfile import leave_out, read_json_records
from lm_core.data.preprocess import Counts, Item, Preprocessor, reasons
from lm_core.errors import DataError

if TYPE_CHECKING:
    from lm_core.data.mindrecord import Row
    from lm_core.tokenizer.base import Tokenizer

COLUMNS = ("input_ids", "labels", "attention_mask")
PROMPT = "这是关于{}的文章：{}"
WORDS = {
    "news_story": "故事", "news_culture": "文化", "news_entertainment": "娱乐",
    "news_sports": "体育", "news_finance": "财经", "news_house": "房产", "news_car": "汽车",
    "news_edu": "教育", "news_tech": "科技", "news_military": "军事", "news_travel": "旅行",
    "news_world": "世界", "news_stock": "股票", "news_agriculture": "农业", "news_game": "游戏",
}  # fmt: skip
"""The words that prompts have for the labels of TNEWS."""
_OWN_WORDS = ("label_desc_ch", "label_zh")
"""What a line of a label file calls the word that it has itself."""
SHOTS = {"zero_shot": 0, "one_shot": 1, "five_shot": 5, "few_shot": 6}
_SHOT_CHARACTERS = 150
# Characters of an item: 0.1 s of work, so that many processes end at about the same time.
_ITEM = 1 << 15


class Example(NamedTuple):
    """A text, the word for its label, and the bytes of its line."""

    sentence: str
    word: str
    size: int


class Question(NamedTuple):
    """A text, the words to choose from, and the number of the true one."""

    sentence: str
    words: tuple[str, ...]
    label: int


class Encoded(NamedTuple):
    """Ids of each row, where in it the text begins, and the number of the true one."""

    rows: list[np.ndarray]
    starts: list[int]
    label: int


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of prompts."""
    parser.add_argument(
        "--label_file",
        required=True,
        metavar="FILE",
        help="labels.json: lines with label, label_desc, and where it is none of TNEWS "
        "label_desc_ch, its word in prompts",
    )
    parser.add_argument(
        "--max_length",
        type=positive,
        default=1024,
        metavar="N",
        help="most ids of a row, at most the model's seq_length + 1; the rest is cut off "
        "(default: 1024)",
    )
    parser.add_argument(
        "--num_labels",
        type=positive,
        default=4,
        metavar="N",
        help="labels to choose from, the true one and others by chance; as many as the run's "
        "num_labels (default: 4)",
    )
    parser.add_argument(
        "--n_shot",
        choices=SHOTS,
        help="examples before each prompt: 0, 1, 5 or 6 (default: one_shot with --shot_file, else "
        "zero_shot)",
    )
    parser.add_argument(
        "--shot_file",
        metavar="FILE",
        help="where the examples come from, such as train.json; never from the input",
    )
    parser.add_argument(
        "--prompt_text",
        default=PROMPT,
        metavar="TEXT",
        help=f"with {{}} for the label and {{}} for the text, in this order (default: {PROMPT})",
    )
    parser.add_argument(
        "--seed", type=int, default=2, metavar="N", help="of all that is chosen (default: 2)"
    )


def check_flags(args: Namespace) -> Sequence[str]:
    """The columns. Raises DataError for every flag that is impossible."""
    found = []
    if args.prompt_text.count("{}") != 2:
        found.append(
            f"prompt_text: {args.prompt_text!r} has {args.prompt_text.count('{}')} places marked "
            f"{{}}; must be two: for the label, and for the text; use {PROMPT}"
        )
    if args.num_labels < 2:
        found.append("num_labels: 1 leaves nothing to choose; use at least 2")
    if args.seed < 0:
        found.append(f"seed: is {args.seed}; must be 0 or more; change it")
    for name, path in (("label_file", args.label_file), ("shot_file", args.shot_file)):
        if path is not None and not Path(path).is_file():
            found.append(f"{name}: {path} does not exist; must be a file of JSON lines; name one")
    if _shots(args) and args.shot_file is None:
        found.append(
            f"n_shot: {args.n_shot} needs examples; must be texts that are not evaluated; add "
            f"--shot_file with train.json"
        )
    if found:
        raise DataError(*found)
    return COLUMNS


def _shots(args: Namespace) -> int:
    return SHOTS[args.n_shot or ("one_shot" if args.shot_file else "zero_shot")]


def read(
    files: Sequence[Path], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Item]:
    """Items of questions, each with the text before all of its prompts."""
    names = read_words(Path(args.label_file))
    words = sorted(set(names.values()))
    if args.num_labels > len(words):
        raise DataError(
            f"num_labels: is {args.num_labels}; {args.label_file} has words for {len(words)} "
            f"labels; use at most {len(words)}"
        )
    examples = [example for file in files for example in _examples(file, names, counts)]
    if not examples:
        raise DataError(
            f"input_file: has no row with sentence and label ({reasons(counts)}); must have JSON "
            f"objects with these, the label one of {args.label_file}; name another"
        )
    before = _before(files, examples, names, args, counts)
    rng = _generator(args.seed, examples)
    waiting: list[Question] = []
    characters = size = 0
    for example in examples:
        waiting.append(_question(example, words, args.num_labels, rng))
        characters += args.num_labels * (len(before) + len(example.sentence))
        size += example.size
        if characters >= _ITEM:
            yield Item((before, waiting), size)
            waiting, characters, size = [], 0, 0
    if waiting:
        yield Item((before, waiting), size)


def read_words(file: Path) -> dict[str, str]:
    """The word for each label, by its number ("100") and by its name ("news_story").

    Raises:
        DataError: the file cannot be read, or a label has no word.
    """
    found: dict[str, str] = {}
    for record in read_json_records(file, Counts()):
        line = record.value if isinstance(record.value, Mapping) else {}
        label = _label(line)
        word = next((str(line[name]) for name in _OWN_WORDS if line.get(name)), WORDS.get(label))
        if not label or word is None:
            raise DataError(
                f"{record.where}: label {label!r} has no word in prompts; must have "
                f"{_OWN_WORDS[0]}, or a label_desc of TNEWS; add it"
            )
        found[label] = word
        found.setdefault(str(line.get("label", label)), word)
    return found


def _examples(file: Path, names: Mapping[str, str], counts: Counts) -> Iterator[Example]:
    """Rows with a text and a known label; others are counted."""
    for record in read_json_records(file, counts, broken="rows left out, no JSON"):
        missing = _missing(record.value, names)
        if missing:
            leave_out(record.where, f"rows left out, {missing}", counts)
            continue
        yield Example(record.value["sentence"], names[_label(record.value)], record.size)


def _label(row: Mapping[str, Any]) -> str:
    """The name of a label, or else its number; "" where a row has neither."""
    given = (row.get(name) for name in ("label_desc", "label"))
    return next((str(label) for label in given if label not in (None, "")), "")


def _missing(row: Any, names: Mapping[str, str]) -> str:
    """What is wrong with a row, "" if nothing is."""
    if not isinstance(row, Mapping):
        return "no object"
    if not isinstance(row.get("sentence"), str):
        return "no text 'sentence'"
    if not row["sentence"].strip():
        return "empty 'sentence'"
    if not _label(row):
        return "no label"
    return "" if _label(row) in names else "unknown label"


def _before(
    files: Sequence[Path],
    examples: Sequence[Example],
    names: Mapping[str, str],
    args: Namespace,
    counts: Counts,
) -> str:
    """The shots that stand before every prompt, each on a line of its own."""
    wanted = _shots(args)
    if not wanted:
        return ""
    file = Path(args.shot_file)
    if any(file.samefile(one) for one in files):
        raise DataError(
            f"shot_file: {file} is the input; examples must be texts that are not evaluated; name "
            f"train.json"
        )
    evaluated = {example.sentence for example in examples}
    every = list(_examples(file, names, own := Counts()))
    others = [example for example in every if example.sentence not in evaluated]
    counts["texts of the input in --shot_file, not taken"] = len(every) - len(others)
    if len(others) < wanted:
        raise DataError(
            f"shot_file: {file} has {len(others)} texts with a known label that are not in the "
            f"input ({reasons(own)}); must be at least {wanted}; name another, such as train.json"
        )
    chosen = _balanced(np.random.default_rng(args.seed), others, wanted)
    shots = (_prompt(args.prompt_text, others[k].word, others[k].sentence) for k in chosen)
    return "".join(f"{shot[:_SHOT_CHARACTERS]}\n" for shot in shots)


def _prompt(template: str, word: str, sentence: str) -> str:
    first, between, last = template.split("{}")
    return f"{first}{word}{between}{sentence}{last}"


def _balanced(rng: np.random.Generator, examples: Sequence[Example], count: int) -> list[int]:
    """Numbers of `count` examples by chance, about as many of each label."""
    words = np.array([example.word for example in examples])
    groups = [np.flatnonzero(words == word) for word in sorted(set(words.tolist()))]
    for group in groups:
        rng.shuffle(group)
    most = (count - 1) // len(groups) + 1
    chosen = np.concatenate([group[:most] for group in groups])
    rng.shuffle(chosen)
    return chosen[:count].tolist()


def _generator(seed: int, examples: Sequence[Example]) -> np.random.Generator:
    """Chooses candidates, of dev.json those of the accuracy that MindFormers published.

    It takes 6 shots from the evaluated file itself and goes on with that generator. So what is
    drawn for them is drawn here, too, and not used.
    """
    rng = np.random.default_rng(seed)
    _balanced(rng, examples, max(SHOTS.values()))
    return rng


def _question(
    example: Example, words: Sequence[str], count: int, rng: np.random.Generator
) -> Question:
    """The true word and `count - 1` others, in an order by chance."""
    others = [word for word in words if word != example.word]
    chosen = [example.word] + [others[k] for k in rng.permutation(len(others))[: count - 1]]
    shuffled = tuple(chosen[k] for k in rng.permutation(count))
    return Question(example.sentence, shuffled, shuffled.index(example.word))


def encode(
    tokenizer: Tokenizer, args: Namespace, work: tuple[str, Sequence[Question]]
) -> list[Encoded]:
    """Encodes all rows of some questions, whole."""
    before, questions = work
    first = args.prompt_text.partition("{}")[0]
    between = args.prompt_text.split("{}")[1]
    heads: dict[str, list[int]] = {}
    found = []
    for sentence, words, label in questions:
        rows, starts = [], []
        for word in words:
            if word not in heads:
                heads[word] = _ids(tokenizer, f"{before}{first}{word}{between}")
            ids = _ids(tokenizer, before + _prompt(args.prompt_text, word, sentence))
            rows.append(np.array(ids, np.int32))
            starts.append(max(1, _common(heads[word], ids)))
        found.append(Encoded(rows, starts, label))
    return found


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that may go on: what a tokenizer puts at its end is left out."""
    return [*tokenizer.prefix_ids, *tokenizer.encode(text, add_special_tokens=False)]


def _common(head: Sequence[int], ids: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = enumerate(zip(head, ids, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(head), len(ids)))


def records(
    encoded: Iterator[list[Encoded]], args: Namespace, tokenizer: Tokenizer, counts: Counts
) -> Iterator[Row]:
    """Records as long as the longest row needs, which is known when all are there."""
    kept: list[Encoded] = []
    for item in encoded:
        kept += [_cut(one, args.max_length, counts) for one in item if _fits(one, args, counts)]
    if not kept:
        raise DataError(
            f"input_file: no text is left to score ({reasons(counts)}); must be more than the "
            f"prompts in max_length {args.max_length}; raise it, or use fewer shots"
        )
    length, pad = max(len(row) for one in kept for row in one.rows), tokenizer.pad_token_id or 0
    counts["records"], counts["ids of a row"] = len(kept), length
    at = np.arange(length)
    for rows, starts, label in kept:
        counts["tokens"] += sum(map(len, rows))
        filled = [np.pad(row, (0, length - len(row)), constant_values=pad) for row in rows]
        pairs = zip(rows, starts, strict=True)
        masks = [(at >= start) & (at < len(row)) for row, start in pairs]
        counts["scored tokens"] += int(np.sum(masks))
        yield {
            "input_ids": np.concatenate(filled),
            "labels": np.array([label], np.int32),
            "attention_mask": np.concatenate(masks).astype(np.int32),
        }


def _fits(one: Encoded, args: Namespace, counts: Counts) -> bool:
    """Whether some of the text is within max_length behind every prompt."""
    pairs = zip(one.rows, one.starts, strict=True)
    if all(start < min(len(row), args.max_length) for row, start in pairs):
        return True
    counts["rows left out, no id of the text within max_length"] += 1
    return False


def _cut(one: Encoded, most: int, counts: Counts) -> Encoded:
    lost = sum(max(0, len(row) - most) for row in one.rows)
    if lost:
        counts["texts cut to max_length"] += 1
        counts["tokens cut off"] += lost
    return one._replace(rows=[row[:most] for row in one.rows])


TNEWS = Preprocessor(
    help="labelled headlines (TNEWS), each behind a prompt for each of several labels; the run's "
    "PromptAccMetric takes the likeliest",
    suffixes=(".json", ".jsonl"),
    add_arguments=add_arguments,
    columns=check_flags,
    read=read,
    encode=encode,
    records=records,
)
