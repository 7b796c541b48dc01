"""What was published with "SAEs (usually) Transfer Between Base and Chat Models" (2024), as data: models, SAEs, and the keys of
the three scripts' records. Nothing here runs anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_transfer.errors import UserError

PILE = "monology/pile-uncopyrighted"
"""Hub data set for text where neither the user nor the SAE names one."""
ALPACA = "tatsu-lab/alpaca"
MASK_TYPES = ("rollout", "user_prompt", "control_tokens")
NO_THRESHOLD = 100_000
"""Scaled norm above which nothing lies: the Pile and fine-tuned scripts' default."""


@dataclass(frozen=True)
class PublishedModel:
    """A model under its TransformerLens name. `template`, `chats` (the file of its rollouts): chat models alone;
    `finetuned`: W&B project/artifact of the base SAE that was fine-tuned on it."""

    hub: str
    norm_scaling_factor: float
    template: str | None = None
    chats: str | None = None
    finetuned: str | None = None


MODELS: Mapping[str, PublishedModel] = {
    "mistral-7B": PublishedModel("mistralai/Mistral-7B-v0.1", 11.576960263941084),
    "mistral-7B-instruct": PublishedModel(
        "mistralai/Mistral-7B-Instruct-v0.1",
        7.931667509979551,
        "mistral",
        "generated_data_mistral.pkl",
        "mistral-7B-base-finetuning/sae_mistral-7b_blocks.16.hook_resid_pre_131072:v1",
    ),
    "qwen1.5-0.5B": PublishedModel("Qwen/Qwen1.5-0.5B", 1.9455641172024254),
    "qwen1.5-0.5B-chat": PublishedModel(
        "Qwen/Qwen1.5-0.5B-Chat",
        1.573157268076237,
        "qwen",
        "generated_data_qwen.pkl",
        "qwen-500M-base-finetuning/sae_qwen1.5-0.5b_blocks.13.hook_resid_pre_32768:v6",
    ),
    "gemma-2b": PublishedModel("google/gemma-2b", 0.29351233532342313),
    "gemma-2b-it": PublishedModel("google/gemma-2b-it", 2.419691849168719, "gemma", "generated_data_gemma.pkl"),
}

BASE_SAES: Mapping[str, str] = {
    "mistral-7B-base": "mistral-7B-base/sae_mistral-7b_blocks.16.hook_resid_pre_131072:v8",
    "qwen-500M-base": "qwen-500M-base/sae_qwen1.5-0.5b_blocks.13.hook_resid_pre_32768:v0",
    "gemma-2b-base": "gemma-2/sae_gemma-2b_blocks.9.hook_resid_pre_32768:v8",
}
CHAT_SAES: Mapping[str, str] = {
    "mistral-7B-chat": "mistral-7B-chat/sae_mistral-7b-instruct_blocks.16.hook_resid_pre_131072:v8",
    "qwen-500M-chat": "qwen-500M-chat/sae_qwen1.5-0.5b-chat_blocks.13.hook_resid_pre_32768:v0",
    "gemma-2b-it": "gemma-2/sae_gemma-2b-it_blocks.9.hook_resid_pre_32768:v7",
}
"""W&B project/artifact by the name that `--sae_project` takes; both Gemma SAEs lie in one project of another name."""

TEXT_COLUMNS: Mapping[str, str] = {
    "L0": "l0",
    "ce_rec": "ce_recovered_legacy",
    "clean_loss": "ce_clean",
    "sae_recons_loss": "ce_spliced",
    "zero_abl_loss": "ce_zero",
    "Explained Variance": "explained_variance_legacy",
    "MSE": "mse",
}
"""Keys of a Pile or fine-tuned record, in order, and our column of each."""

CHAT_COLUMNS: Mapping[str, tuple[str, str]] = {
    "chat_mse": ("chat", "mse"),
    "base_mse": ("base", "mse"),
    "chat_l0": ("chat", "l0"),
    "base_l0": ("base", "l0"),
    "chat_ev": ("chat", "explained_variance_legacy"),
    "base_ev": ("base", "explained_variance_legacy"),
    "Base->Chat CE Rec": ("base", "ce_recovered_legacy"),
    "Chat->Chat CE Rec": ("chat", "ce_recovered_legacy"),
    "Clean Chat loss": ("chat", "ce_clean"),
    "Chat->Chat SAE loss": ("chat", "ce_spliced"),
    "Base->Chat SAE loss": ("base", "ce_spliced"),
    "Zero abl loss": ("chat", "ce_zero"),
}
"""Keys of an Alpaca record, in order: the SAE and our column of each."""


def model(name: str, option: str) -> PublishedModel:
    """A model by its name, in the spelling of any of the scripts. Raises UserError E-OPTION."""
    by_name = {known.casefold(): entry for known, entry in MODELS.items()}
    if name.casefold() not in by_name:
        raise UserError("E-OPTION", f"{option} {name!r} was not published", f"choose from {', '.join(MODELS)}")
    return by_name[name.casefold()]


def chat_model(name: str, option: str) -> PublishedModel:
    """A model that has a chat template. Raises UserError E-OPTION."""
    found = model(name, option)
    if found.template is None:
        chat = [known for known, entry in MODELS.items() if entry.template is not None]
        raise UserError("E-OPTION", f"{option} {name!r} is no chat model", f"choose from {', '.join(chat)}")
    return found


def artifact(project: str, option: str, known: Mapping[str, str]) -> str:
    """W&B project/artifact of an SAE. Raises UserError E-OPTION."""
    if project not in known:
        raise UserError("E-OPTION", f"{option} {project!r} was not published", f"choose from {', '.join(known)}")
    return known[project]


def wandb_source(artifact: str) -> str:
    """`--sae` source of an artifact entity/project/name:version."""
    return f"wandb:{artifact}"


def text_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """The measured part of a Pile or fine-tuned record."""
    return {key: record[column] for key, column in TEXT_COLUMNS.items()}


def chat_values(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The measured part of an Alpaca record, out of our records by SAE: `chat` and `base`."""
    return {key: records[sae][column] for key, (sae, column) in CHAT_COLUMNS.items()}
