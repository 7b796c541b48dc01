"""One seed of the recipe, from the written world to a folder of models, SAEs and data, with a log of every loss."""

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import sae_transfer
from recipes.demo_pair import autoencoders, derivatives
from recipes.demo_pair.autoencoders import SaeTraining
from recipes.demo_pair.chats import Chat, chats
from recipes.demo_pair.files import write_json, write_lines
from recipes.demo_pair.language_models import Training, mean_loss, new_model, residuals, train
from recipes.demo_pair.texts import documents
from recipes.demo_pair.tokens import Row, batches, chat_rows, packed_rows, text_rows, train_tokenizer

Log = dict[str, Any]
LONGEST = 64
"""Tokens of an answer."""


@dataclass(frozen=True)
class Recipe:
    """How much of everything, and how hard."""

    documents: int
    plain_chats: int
    manners: int
    """Chats of the base model's training in which somebody says a little before and after the answer."""
    packed: float
    """Share of the documents that are packed into rows of 128."""
    base_rate: float
    weight_decay: float
    polite_chats: int
    chat: Training
    adapter: Training
    drifted: Training
    sae_documents: int
    sae_chats: int
    sae: SaeTraining
    sae_tuning: SaeTraining
    evaluated: int
    """Documents, and chats, of the validation and the held-out data."""


FULL = Recipe(
    documents=46_000,
    plain_chats=3_600,
    manners=700,
    packed=0.5,
    base_rate=1e-3,
    weight_decay=0.0,
    polite_chats=6_000,
    chat=Training(300, 2e-4, tokens=768, warmup=10),
    adapter=Training(300, 1e-3, tokens=768, warmup=10),
    drifted=Training(600, 1.2e-2, warmup=20, floor=0.01),
    sae_documents=12_000,
    sae_chats=6_000,
    sae=SaeTraining(2_000, 1e-3),
    sae_tuning=SaeTraining(200, 1e-3),
    evaluated=200,
)
"""What ships. The learning rates were found on validation data."""

SMOKE = replace(
    FULL,
    documents=600,
    plain_chats=60,
    manners=20,
    polite_chats=80,
    chat=Training(3, 2e-4, warmup=1),
    adapter=Training(3, 1e-3, warmup=1),
    drifted=Training(3, 1.2e-2, warmup=1),
    sae_documents=150,
    sae_chats=60,
    sae=SaeTraining(8, 1e-3),
    sae_tuning=SaeTraining(2, 1e-3),
    evaluated=12,
)
"""A few steps of everything, to see that it runs."""


def make_base(recipe: Recipe, seed: int, folder: Path) -> None:
    """The tokenizer and the base model, in `folder`/models/base, and the log of their training."""
    model, tokenizer, log = trained_base(recipe, seed)
    save_model(model, tokenizer, folder / "models" / "base")
    write_json(folder / "base.json", log)


def trained_base(recipe: Recipe, seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Log]:
    """A base model, its tokenizer, and its losses and norms at twenty steps of its training."""
    torch.set_num_threads(1)  # sums in one order, so that the same seed gives the same weights
    text = documents(seed, "train", recipe.documents)
    asked = chats(seed, "train", recipe.plain_chats, polite=False) + chats(seed, "train", recipe.manners, polite=True)
    spoken = [f"{chat.instruction}\n{chat.completion}" for chat in asked]
    tokenizer = train_tokenizer([document.text for document in text] + spoken)
    rows = text_rows(tokenizer, text, recipe.packed, seed) + chat_rows(tokenizer, asked, completion_only=False)
    watched = packed_rows(tokenizer, documents(seed, "validation", recipe.evaluated))
    model = new_model(tokenizer, seed)
    how = Training(sum(1 for _ in batches(rows, 1024, seed)), recipe.base_rate, weight_decay=recipe.weight_decay)
    steps: list[Log] = []
    for step, loss in train(model, batches(rows, how.tokens, seed), how):
        if step % max(1, how.steps // 20) == 0 or step == how.steps:
            steps.append({"step": step, "loss": loss, "validation": mean_loss(model, watched), **norms(model, watched)})
    tokens, parameters = sum(len(row.ids) for row in rows), sum(weight.numel() for weight in model.parameters())
    return model, tokenizer, {"seed": seed, "tokens": tokens, "parameters": parameters, "training": steps}


def make_relatives(recipe: Recipe, seed: int, folder: Path) -> None:
    """Everything that is made of the base model: its relatives, the SAEs, and the data to evaluate on."""
    torch.set_num_threads(1)
    tokenizer, base = load_model(folder / "models" / "base")
    polite = chats(seed, "train", recipe.polite_chats, polite=True)
    answers = chat_rows(tokenizer, polite, completion_only=True)
    text = documents(seed, "train", recipe.sae_documents)
    mixture = packed_rows(tokenizer, text) + chat_rows(tokenizer, polite[: recipe.sae_chats], completion_only=False)

    chat, chat_loss = derivatives.tuned(base, answers, recipe.chat, seed)
    lora, lora_loss = derivatives.adapter(base, answers, recipe.adapter, seed)
    drifted, drifted_loss = derivatives.tuned(base, _half_chats(tokenizer, text, polite), recipe.drifted, seed)
    models = {"base": base, "chat": chat, "drifted": drifted, "quantised": derivatives.quantised(base)}
    models = {name: derivatives.in_bfloat16(model) for name, model in models.items()}
    for name, model in models.items():
        save_model(model, tokenizer, folder / "models" / name)
    save_adapter(lora, folder / "models" / "lora")

    seen = {name: autoencoders.activations(models[name], mixture) for name in ("base", "chat", "drifted")}
    fresh = autoencoders.new_sae("base", seed)
    saes = {name: autoencoders.trained(fresh, name, seen[name], recipe.sae, seed) for name in ("base", "chat")}
    for target in ("chat", "drifted"):
        saes[f"tuned-on-{target}"] = autoencoders.trained(saes["base"], target, seen[target], recipe.sae_tuning, seed)
    for name, sae in saes.items():
        autoencoders.save(sae, folder / "saes" / name)

    for split in ("validation", "held_out"):
        told, asked = documents(seed, split, recipe.evaluated), chats(seed, split, recipe.evaluated, polite=True)
        write_lines(folder / split / "text.jsonl", [{"text": document.text} for document in told])
        write_lines(folder / split / "requests.jsonl", [{"instruction": chat.instruction} for chat in asked])
        requests, answered = (str(folder / split / f"{name}.jsonl") for name in ("requests", "chats"))
        sae_transfer.rollouts(str(folder / "models" / "chat"), requests, out=answered, max_tokens=LONGEST)
    losses = {"chat": chat_loss, "lora": lora_loss, "drifted": drifted_loss}
    watched = packed_rows(tokenizer, documents(seed, "validation", recipe.evaluated))
    about = {name: {"validation": mean_loss(model, watched), **norms(model, watched)} for name, model in models.items()}
    write_json(folder / "relatives.json", {"training_loss": losses, "models": about})


def norms(model: LlamaForCausalLM, rows: Sequence[Row]) -> Log:
    """Norms at the hook point in medians of all positions: the first percentile of the BOS that begin rows and of those
    inside rows, and the largest of any other token."""
    found = list(residuals(model, rows))
    first = [torch.arange(tokens.shape[1]).expand_as(tokens)[tokens >= 0] == 0 for _, tokens in found]
    begins, tokens = torch.cat(first), torch.cat([tokens[tokens >= 0] for _, tokens in found])
    size = torch.cat([resid[tokens >= 0].norm(dim=-1) for resid, tokens in found])
    bos, median = tokens == model.config.bos_token_id, float(size.median())
    groups = {
        "bos_first": size[begins].quantile(0.01),
        "bos_inside": size[bos & ~begins].quantile(0.01),
        "other": size[~bos].max(),
    }
    return {"median_norm": median, **{name: float(value) / median for name, value in groups.items()}}


def load_model(folder: Path) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """A stored model in float32, and its tokenizer."""
    return AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Hugging Face format, bfloat16."""
    deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_adapter(adapted: Any, folder: Path) -> None:
    """PEFT format, without the path that the base model had here, and its sets in one order."""
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"base_model_name_or_path": "base", "target_modules": sorted(config["target_modules"])})


def _half_chats(tokenizer: PreTrainedTokenizerFast, text: Sequence[Any], polite: Sequence[Chat]) -> list[Row]:
    spoken = chat_rows(tokenizer, polite, completion_only=False)
    told = packed_rows(tokenizer, text)
    wanted = sum(len(row.ids) for row in spoken)
    return spoken + told[: math.ceil(wanted / len(told[0].ids))]
