"""Data files -> token rows, by one entry for each kind of data, compared with every model's vocabulary."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_transfer.errors import UserError
from sae_transfer.runs.manifest import DataTokens, Skipped
from sae_transfer.sources.resolve import ResolvedData, ResolvedModel
from sae_transfer.specs import TOKEN_KINDS, ReadingSpec
from sae_transfer.workflows.prepare import Resolved, context_size, longest, prepend_bos

if TYPE_CHECKING:
    from sae_transfer.data.decoding import Texts
    from sae_transfer.data.packing import TokenData

Tokenizers = Mapping[str, Any]
"""Fast tokenizers by NAME of their model, in the order of the command."""


@dataclass(frozen=True)
class Prepared:
    """Data as token rows, how they came about, and the (model, data) pairs that can't be."""

    data: dict[str, "TokenData"]
    about: dict[str, DataTokens]
    skipped: tuple[Skipped, ...]
    texts: Mapping[str, "Texts"] = field(default_factory=dict)
    """The text of a data set's ids: by the tokenizer that read it, for rows by the first there is."""

    def of(self, model: str) -> list["TokenData"]:
        """The data sets that a model can read, in the order of the command."""
        skipped = {(entry.model, entry.data) for entry in self.skipped}
        return [data for name, data in self.data.items() if (model, name) not in skipped]

    def pairs(self, found: Resolved) -> list[tuple[str, str]]:
        """Every (model, data) pair that can be measured, in the order of the command."""
        return [(model.ref.name, data.name) for model in found.models for data in self.of(model.ref.name)]

    @property
    def lengths(self) -> dict[str, tuple[int, ...]]:
        """Tokens of each row, by data set."""
        return {name: data.lengths for name, data in self.data.items()}


@dataclass(frozen=True)
class _Read:
    """A data set as it was read: by whose tokenizer, at which context size, with which BOS."""

    tokens: "TokenData"
    documents: int
    tokenizer: str | None = None
    context_size: int | None = None
    bos: int | None = None


def tokenised(spec: ReadingSpec, found: Resolved, began: datetime | None = None) -> Prepared:
    """Read and tokenise every data set; compare its tokens with every model's vocabulary.

    `began`: when the run began, by default now: what a chat template that prints the date is told. Raises: UserError.
    """
    needed = any(data.ref.kind != "rows" for data in found.data)
    tokenizers = _tokenizers(found) if needed else _at_hand(found)
    every = {data.ref.name: READERS[data.ref.kind](spec, found, tokenizers, data, began) for data in found.data}
    read = {data.ref.name: _first_rows(spec, data, every[data.ref.name]) for data in found.data}
    about = {data.ref.name: _about(spec, data, read[data.ref.name]) for data in found.data}
    skipped = [entry for data in found.data for entry in _skipped(found, tokenizers, data, read[data.ref.name])]
    texts = _texts(tokenizers, {name: result.tokenizer for name, result in read.items()})
    data = {name: _classified(result.tokens, texts[name], result.bos) for name, result in read.items()}
    return Prepared(data, about, tuple(skipped), texts)


def _texts(tokenizers: Tokenizers, readers: Mapping[str, str | None]) -> dict[str, "Texts"]:
    from sae_transfer.data.decoding import Texts

    by_owner: dict[str | None, Texts] = {owner: Texts(tokenizer) for owner, tokenizer in tokenizers.items()}
    by_owner[None] = next(iter(by_owner.values()), Texts(None))
    return {name: by_owner[owner] for name, owner in readers.items()}


def _classified(data: "TokenData", texts: "Texts", bos: int | None) -> "TokenData":
    """The same with a class for each token; what was added to a tokenizer is special unless it is white space."""
    from sae_transfer.data import classes

    tokenizer: Any = texts.decoder
    if tokenizer is None:
        return classes.classified(data, None)
    used = {int(token) for row in data.rows for token in np.unique(row.tokens)}
    added = {token for token in tokenizer.added_tokens_decoder if (texts.one(token) or "").strip()}
    known = classes.Known(
        bos=frozenset(token for token in (bos, tokenizer.bos_token_id) if token is not None),
        special=frozenset(added.union(tokenizer.all_special_ids)),
        newline=frozenset(token for token in used if "\n" in (texts.one(token) or "")),
    )
    return classes.classified(data, known)


def _tokenizers(found: Resolved) -> Tokenizers:
    from sae_transfer.models import loading

    by_path = {model.base.path: loading.tokenizer(model) for model in found.models}
    tokenizers = {m.ref.name: by_path[m.base.path] for m in found.models if by_path[m.base.path] is not None}
    if not tokenizers:
        raise UserError("E-TOKENIZER", "none of the models has a tokenizer", "give --rows, or a model with a tokenizer")
    return tokenizers


def _at_hand(found: Resolved) -> Tokenizers:
    """The first tokenizer that can be loaded: rows of ids need none, and are only named by it."""
    from sae_transfer.models import loading

    for model in found.models:
        with suppress(UserError):
            tokenizer = loading.tokenizer(model)
            if tokenizer is not None:
                return {model.ref.name: tokenizer}
    return {}


def _rows(spec: ReadingSpec, _: Resolved, __: Tokenizers, data: ResolvedData, ___: datetime | None) -> _Read:
    from sae_transfer.data import text

    tokens = text.token_rows(data.at.path, data.ref.name, spec.max_documents)
    return _Read(tokens, len(tokens.rows))


def _text(spec: ReadingSpec, found: Resolved, tokenizers: Tokenizers, data: ResolvedData, _: datetime | None) -> _Read:
    """Packed by the first model's tokenizer."""
    from sae_transfer.data import packing, text

    owner, tokenizer = next(iter(tokenizers.items()))
    size = context_size(spec, found.saes, found.models)
    bos = _bos(tokenizer, owner) if prepend_bos(spec, found.saes) else None
    read = 0

    def encoded() -> Generator[list[int], None, None]:
        nonlocal read
        with closing(text.documents(data.source, spec.max_documents)) as texts:
            for read, document in enumerate(texts, start=1):  # noqa: B007
                yield tokenizer(document, add_special_tokens=False)["input_ids"]

    with closing(encoded()) as ids:
        rows = tuple(islice(packing.pack(ids, size, bos), spec.max_rows))
    if not rows:
        raise UserError("E-DATA", f"{data.ref.name} fills no row of {size} tokens", "give more text or --context-size")
    return _Read(packing.TokenData(data.ref.name, rows), read, owner, size, bos)


def _chats(spec: ReadingSpec, found: Resolved, tokenizers: Tokenizers, data: ResolvedData, began: datetime | None) -> _Read:
    """Rendered and tokenised by the first model whose tokenizer can."""
    from sae_transfer.data import chat, pickles, published

    cut = published.cut_of(spec.chat_template) if spec.published else pickles.cut
    chats = chat.read(data.source, spec.max_documents, cut)
    owner, render = _renderer(spec.chat_template, tokenizers, began)
    limit = spec.context_size or longest(found.models)
    tokens = chat.tokenise(chats, render, tokenizers[owner], data.ref.name, limit)
    if spec.published:
        tokens = published.masked(tokens, spec.chat_template, tokenizers[owner])
    return _Read(tokens, len(chats), owner, limit)


READERS: dict[str, Callable[[ReadingSpec, Resolved, Tokenizers, ResolvedData, datetime | None], _Read]] = {
    "text": _text,
    "chats": _chats,
    "rows": _rows,
}


def _first_rows(spec: ReadingSpec, data: ResolvedData, read: _Read) -> _Read:
    """So many rows of text as are asked for. Raises UserError E-DATA where there are fewer."""
    if spec.max_rows is None or data.ref.kind == "chats":
        return read
    rows = read.tokens.rows
    if len(rows) < spec.max_rows:
        what = f"{data.ref.name} fills {len(rows)} rows, {spec.max_rows} are asked for"
        raise UserError("E-DATA", what, "give more text, or ask for fewer or smaller batches")
    return replace(read, tokens=replace(read.tokens, rows=rows[: spec.max_rows]))


def _bos(tokenizer: Any, owner: str) -> int:
    """The BOS id; where there is none the end-of-text id, as TransformerLens does, with which such SAEs were trained."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise UserError("E-TOKENIZER", f"the tokenizer of {owner} has neither BOS nor end-of-text token", "give --no-bos")
    return int(token)


def _renderer(template: str, tokenizers: Tokenizers, began: datetime | None) -> tuple[str, Any]:
    """The first model whose tokenizer can render the template, and its rendering; else the first one's refusal."""
    from sae_transfer.data import templates

    refusals = []
    for owner, tokenizer in tokenizers.items():
        try:
            return owner, templates.renderer(template, tokenizer, began)
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def _about(spec: ReadingSpec, data: ResolvedData, read: _Read) -> DataTokens:
    """What run.json keeps. Raises UserError E-SPEC where no token kind that was asked for occurs."""
    rows = read.tokens.rows
    occurring = {int(kind) for row in rows for kind in set(row.kinds.tolist())}
    whole = all(bool((row.kinds == TOKEN_KINDS.index("all")).all()) for row in rows)
    kinds = tuple(kind for code, kind in enumerate(TOKEN_KINDS) if code in occurring and kind in spec.token_kinds)
    if not kinds:
        there = ", ".join(TOKEN_KINDS[code] for code in sorted(occurring) if code >= 0)
        raise UserError("E-SPEC", f"{data.ref.name} has none of --token-kinds {','.join(spec.token_kinds)}", f"it has {there}")
    return DataTokens(
        documents=read.documents,
        rows=len(rows),
        tokens=sum(read.tokens.lengths),
        left_out=read.tokens.left_out,
        token_kinds=kinds,
        batched=data.ref.kind != "chats" and whole,
        tokenizer=read.tokenizer,
        context_size=read.context_size,
        bos=read.bos,
        sha256=read.tokens.sha256,
    )


def _skipped(found: Resolved, tokenizers: Tokenizers, data: ResolvedData, read: _Read) -> list[Skipped]:
    """Models that lack a token of the data. Raises UserError E-TOKEN where none is left, E-DATA for rows too long."""
    name, limit = data.ref.name, longest(found.models)
    used = sorted({int(token) for row in read.tokens.rows for token in set(row.tokens.tolist())})
    reasons = {model.ref.name: _lack(model, used, tokenizers, read.tokenizer) for model in found.models}
    lacking = [Skipped(model=model, data=name, reason=reason) for model, reason in reasons.items() if reason]
    if len(lacking) == len(found.models) or (lacking and data.ref.kind == "rows"):
        raise UserError("E-TOKEN", f"{name}: {lacking[0].reason}", "give data made with this model's tokenizer")
    if limit is not None and max(read.tokens.lengths) > limit:
        raise UserError("E-DATA", f"{name} has a row of {max(read.tokens.lengths)} tokens, the models take {limit}", "cut it")
    return lacking


def _lack(model: ResolvedModel, used: list[int], tokenizers: Tokenizers, reader: str | None) -> str | None:
    """Why a model can't read these ids, or None. Raises UserError E-TOKENIZER where an id means another token to it."""
    name, size = model.ref.name, model.facts.vocab_size
    if size is not None and used[-1] >= size:
        return f"token {used[-1]} is outside the vocabulary of {name}, which has {size}"
    if reader is None or name not in tokenizers:
        return None
    for token in used:
        theirs, ours = (tokenizers[owner].convert_ids_to_tokens(token) for owner in (reader, name))
        if ours is None:
            return f"the tokenizer of {name} lacks token {token} ({theirs!r})"
        if theirs != ours:
            what = f"token {token} is {theirs!r} to {reader} and {ours!r} to {name}"
            raise UserError("E-TOKENIZER", what, "a pair shares one tokenizer: choose models that do")
    return None
