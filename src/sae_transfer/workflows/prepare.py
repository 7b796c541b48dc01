"""Names -> resolved sources, checked against each other, and data as token rows. Nothing of a model's weights is read."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sae_transfer.errors import UserError
from sae_transfer.runs.manifest import DataTokens, Skipped, Source, Tokenisation
from sae_transfer.sources import configs, resolve
from sae_transfer.sources.resolve import Located, ResolvedData, ResolvedModel, ResolvedSae
from sae_transfer.specs import TOKEN_KINDS, EvaluateSpec

if TYPE_CHECKING:
    from sae_transfer.data.packing import TokenData


@dataclass(frozen=True)
class Resolved:
    """Every source of a run, found and checked by name and config alone."""

    models: tuple[ResolvedModel, ...]
    saes: tuple[ResolvedSae, ...]
    data: tuple[ResolvedData, ...]

    def sources(self) -> dict[str, Source]:
        """What run.json keeps of them."""
        found = {f"model:{m.ref.name}": _source(m.base, m.facts) for m in self.models}
        found |= {f"adapter:{m.ref.name}": _source(m.adapter) for m in self.models if m.adapter is not None}
        found |= {f"sae:{s.ref.name}": _source(s.at, s.facts) for s in self.saes}
        return found | {f"data:{d.ref.name}": _source(d.at) for d in self.data}


@dataclass(frozen=True)
class Prepared:
    """Data as token rows, how they came about, and the (model, data) pairs that can't be."""

    data: dict[str, "TokenData"]
    tokenisation: Tokenisation
    about: dict[str, DataTokens]
    skipped: tuple[Skipped, ...]

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


def resolved(spec: EvaluateSpec) -> Resolved:
    """Find every source and compare configs: width, depth, BOS, context size. No tensor library is imported.

    Raises: UserError.
    """
    data = tuple(resolve.data(ref) for ref in spec.data)
    saes = tuple(resolve.sae(ref) for ref in spec.saes)
    models = tuple(resolve.model(ref) for ref in spec.models)
    for sae in saes:
        for model in models:
            configs.check_fits(sae.ref.name, sae.facts, model.ref.name, model.facts)
    if any(ref.kind == "text" for ref in spec.data):
        _prepend_bos(spec, saes)
        _context_size(spec, saes, models)
    return Resolved(models, saes, data)


def tokenised(spec: EvaluateSpec, found: Resolved) -> Prepared:
    """Read and tokenise every data set; compare its tokens with every model's vocabulary. Raises UserError."""
    from sae_transfer.data import chat, packing, templates, text
    from sae_transfer.models import loading

    refs = {data.ref.name: data for data in found.data}
    tokenizers: dict[str, Any] = {}
    if any(data.ref.kind != "rows" for data in found.data):
        by_path = {model.base.path: loading.tokenizer(model) for model in found.models}
        tokenizers = {m.ref.name: by_path[m.base.path] for m in found.models if by_path[m.base.path] is not None}
        if not tokenizers:
            raise UserError("E-TOKENIZER", "none of the models has a tokenizer", "give --rows, or a model with a tokenizer")
    tokenisation = Tokenisation()
    tokens: dict[str, TokenData] = {}
    documents: dict[str, int] = {}
    for name, data in refs.items():
        if data.ref.kind == "rows":
            tokens[name] = text.token_rows(data.at.path, name, spec.max_documents)
            documents[name] = len(tokens[name].rows)
        elif data.ref.kind == "text":
            owner, tokenizer = next(iter(tokenizers.items()))
            size = _context_size(spec, found.saes, found.models)
            bos = _bos(tokenizer, owner) if _prepend_bos(spec, found.saes) else None
            texts = text.documents(data.at.path, spec.max_documents)
            encoded = (tokenizer(document, add_special_tokens=False)["input_ids"] for document in texts)
            tokens[name] = packing.TokenData(name, tuple(packing.pack(encoded, size, bos)))
            documents[name] = len(texts)
            tokenisation = tokenisation.model_copy(update={"tokenizer": owner, "context_size": size, "bos": bos})
            if not tokens[name].rows:
                raise UserError("E-DATA", f"{name} fills no row of {size} tokens", "give more text or --context-size")
        else:
            chats = chat.read(data.at.path, spec.max_documents)
            owner, render = _renderer(spec.chat_template, tokenizers, templates.renderer)
            limit = spec.context_size or _longest(found.models)
            tokens[name] = chat.tokenise(chats, render, tokenizers[owner], name, limit)
            documents[name] = len(chats)
            tokenisation = tokenisation.model_copy(update={"chats_tokenizer": owner, "chat_context_size": limit})
    about = {name: _about(spec, data, refs[name], documents[name]) for name, data in tokens.items()}
    return Prepared(tokens, tokenisation, about, _skipped(found, tokens, tokenizers))


def _source(at: Located, facts: Any = None) -> Source:
    about = {} if facts is None else {key: str(value) for key, value in asdict(facts).items() if key != "hook_point"}
    if hasattr(facts, "hook_point"):
        about["hook_point"] = str(facts.hook_point)
    return Source(path=str(at.path), revision=at.revision, files=at.files, about=about)


def _prepend_bos(spec: EvaluateSpec, saes: tuple[ResolvedSae, ...]) -> bool:
    if spec.bos is not None:
        return spec.bos
    wanted = {sae.ref.name: sae.facts.prepend_bos for sae in saes}
    if len(set(wanted.values())) > 1:
        raise UserError(
            "E-SPEC", f"SAEs disagree on prepend_bos ({wanted}), and one run has one packing", "give --bos or --no-bos"
        )
    return next(iter(wanted.values()))


def _context_size(spec: EvaluateSpec, saes: tuple[ResolvedSae, ...], models: tuple[ResolvedModel, ...]) -> int:
    sizes = [sae.facts.context_size for sae in saes if sae.facts.context_size is not None]
    size = spec.context_size or min(sizes, default=None)
    if size is None:
        raise UserError("E-SPEC", "no SAE records the context size it was trained at", "give --context-size")
    longest = _longest(models)
    if longest is not None and size > longest:
        raise UserError("E-SPEC", f"context size {size} is more than the models take", f"give --context-size {longest}")
    return size


def _longest(models: tuple[ResolvedModel, ...]) -> int | None:
    return min((m.facts.max_positions for m in models if m.facts.max_positions is not None), default=None)


def _bos(tokenizer: Any, owner: str) -> int:
    """The BOS id; where there is none the end-of-text id, as TransformerLens does, with which such SAEs were trained."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise UserError("E-TOKENIZER", f"the tokenizer of {owner} has neither BOS nor end-of-text token", "give --no-bos")
    return int(token)


def _renderer(template: str, tokenizers: Mapping[str, Any], make: Callable[[str, Any], Any]) -> tuple[str, Any]:
    """The first model whose tokenizer can render the template, and its rendering."""
    refusal: UserError | None = None
    for owner, tokenizer in tokenizers.items():
        try:
            return owner, make(template, tokenizer)
        except UserError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _about(spec: EvaluateSpec, data: "TokenData", source: ResolvedData, documents: int) -> DataTokens:
    occurring = {int(kind) for row in data.rows for kind in set(row.kinds.tolist())}
    whole = all(bool((row.kinds == TOKEN_KINDS.index("all")).all()) for row in data.rows)
    kinds = tuple(kind for code, kind in enumerate(TOKEN_KINDS) if code in occurring and kind in spec.token_kinds)
    if not kinds:
        raise UserError("E-SPEC", f"{data.name} has none of the token kinds {spec.token_kinds}", "choose others")
    return DataTokens(
        documents=documents,
        rows=len(data.rows),
        tokens=sum(data.lengths),
        left_out=data.left_out,
        token_kinds=kinds,
        batched=source.ref.kind != "chats" and whole,
    )


def _skipped(found: Resolved, tokens: Mapping[str, "TokenData"], tokenizers: Mapping[str, Any]) -> tuple[Skipped, ...]:
    """Models that lack a token of a data set. Raises UserError E-TOKEN, E-TOKENIZER where none is left, or ids differ."""
    skipped = []
    kinds = {data.ref.name: data.ref.kind for data in found.data}
    for name, data in tokens.items():
        used = sorted({int(token) for row in data.rows for token in set(row.tokens.tolist())})
        reasons = {m.ref.name: _lack(m, used, tokenizers, kinds[name] == "rows") for m in found.models}
        lacking = [Skipped(model=model, data=name, reason=reason) for model, reason in reasons.items() if reason]
        if len(lacking) == len(found.models) or (lacking and kinds[name] == "rows"):
            raise UserError("E-TOKEN", f"{name}: {lacking[0].reason}", "give data made with this model's tokenizer")
        longest = max(data.lengths)
        limit = _longest(found.models)
        if limit is not None and longest > limit:
            raise UserError("E-DATA", f"{name} has a row of {longest} tokens, the models take {limit}", "cut the rows")
        skipped += lacking
    return tuple(skipped)


def _lack(model: ResolvedModel, used: list[int], tokenizers: Mapping[str, Any], rows: bool) -> str | None:
    """Why a model can't read these ids, or None. Raises UserError E-TOKENIZER where an id means another token to it."""
    size = model.facts.vocab_size
    if size is not None and used[-1] >= size:
        return f"token {used[-1]} is outside the vocabulary of {model.ref.name}, which has {size}"
    if rows or model.ref.name not in tokenizers:
        return None
    reader = next(iter(tokenizers.values()))
    own = tokenizers[model.ref.name]
    for token in used:
        theirs, ours = reader.convert_ids_to_tokens(token), own.convert_ids_to_tokens(token)
        if ours is None:
            return f"the tokenizer of {model.ref.name} lacks token {token} ({theirs!r})"
        if theirs is not None and theirs != ours:
            raise UserError(
                "E-TOKENIZER",
                f"token {token} is {theirs!r} to {next(iter(tokenizers))} and {ours!r} to {model.ref.name}",
                "a pair shares one tokenizer: choose models that do",
            )
    return None
