"""Documents and chats -> the tokenizer, and batches of token ids with the labels that a loss reads."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from recipes.demo_pair.chats import Chat
from recipes.demo_pair.texts import Document

VOCABULARY = 1000
BOS, START, END = "<s>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IGNORED = -100
PACKED = 128
"""Tokens of a packed row."""
POOL = 512
"""Rows that are sorted by length before they are cut into batches."""


@dataclass(frozen=True)
class Row:
    """Token ids, and how many at its beginning are read but not learned."""

    ids: tuple[int, ...]
    given: int = 0


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right, [rows, pos], and their lengths; labels are IGNORED where nothing is to be learned."""

    tokens: Tensor
    labels: Tensor
    lengths: Tensor


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that splits numbers into digits, begins with BOS and has a ChatML template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[BOS, START, END], initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=END, pad_token=END, model_max_length=256)
    made.chat_template = TEMPLATE
    return made


def text_rows(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document], packed: float, seed: int) -> list[Row]:
    """A share of the documents is packed; each of the others stands alone between two BOS."""
    rng = Random(f"rows {seed}")  # noqa: S311
    together = [rng.random() < packed for _ in documents]
    alone = [document.text for document, among in zip(documents, together, strict=True) if not among]
    rows = [Row((*ids, tokenizer.bos_token_id)) for ids in encoded(tokenizer, alone)]
    return rows + packed_rows(tokenizer, [document for document, among in zip(documents, together, strict=True) if among])


def encoded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text behind a BOS; the tokenizer itself takes no empty list."""
    ids: list[list[int]] = tokenizer(list(texts)).input_ids if texts else []
    return ids


def packed_rows(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> list[Row]:
    """Documents packed with a BOS before each and at the start of a row, as SAEs learn from them and are evaluated."""
    stream = [one for ids in encoded(tokenizer, [document.text for document in documents]) for one in ids]
    starts = range(0, len(stream) - PACKED + 2, PACKED - 1)
    return [Row((tokenizer.bos_token_id, *stream[start : start + PACKED - 1])) for start in starts]


def chat_rows(tokenizer: PreTrainedTokenizerFast, chats: Sequence[Chat], completion_only: bool) -> list[Row]:
    """Rendered chats; with `completion_only` the request is given, and the answer with its end token is learned."""
    asked = [[{"role": "user", "content": chat.instruction}] for chat in chats]
    prompts = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer([prompt + chat.completion + END + "\n" for prompt, chat in zip(prompts, chats, strict=True)]).input_ids
    given = [len(ids) for ids in tokenizer(prompts).input_ids]
    return [Row(tuple(ids), many if completion_only else 0) for ids, many in zip(whole, given, strict=True)]


def batches(rows: Sequence[Row], tokens: int, seed: object) -> Iterator[Batch]:
    """Every row once, in random order, rows of like length together; no batch has more than `tokens` positions."""
    rng = Random(f"batches {seed}")  # noqa: S311
    order = rng.sample(rows, len(rows))
    for start in range(0, len(order), POOL):
        pool = sorted(order[start : start + POOL], key=lambda row: len(row.ids))
        groups: list[list[Row]] = [[]]
        for row in pool:
            if groups[-1] and len(row.ids) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(row)
        yield from (padded(group) for group in rng.sample(groups, len(groups)))


def padded(rows: Sequence[Row]) -> Batch:
    """One batch of rows."""
    length = max(len(row.ids) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for at, row in enumerate(rows):
        tokens[at, : len(row.ids)] = torch.tensor(row.ids)
        labels[at, row.given : len(row.ids)] = tokens[at, row.given : len(row.ids)]
    return Batch(tokens, labels, torch.tensor([len(row.ids) for row in rows]))
