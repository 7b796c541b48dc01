"""Peak memory of `sae_transfer.evaluate` on a small random Llama. Run as a program it measures itself, on TOKENS tokens.

One fresh process a measurement, started by a small one: on Linux a program inherits the peak of the process that starts it.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

CONTEXT, VOCAB = 128, 1000
SIZES = (20_000, 200_000)
LIMIT_MB = 50
"""How much the peak may grow between the SIZES."""


def main() -> None:
    """Print the peaks. Raises SystemExit where they differ by more than LIMIT_MB."""
    peaks = {size: _measured(size) for size in SIZES}
    grown = peaks[SIZES[1]] - peaks[SIZES[0]]
    print("peak memory of evaluate (random Llama: 4 layers, width 64; one SAE of 512 features)")
    for size, peak in peaks.items():
        print(f"  {size:>8,} tokens                  {peak:8.1f} MB")
    print(f"  difference                       {grown:8.1f} MB (at most {LIMIT_MB})")
    if abs(grown) > LIMIT_MB:
        raise SystemExit(f"FAIL: peak memory differs by {grown:.1f} MB between {SIZES[0]:,} and {SIZES[1]:,} tokens")


def _measured(tokens: int) -> float:
    child = [sys.executable, "-m", "benchmarks.memory", str(tokens)]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"FAIL: evaluate on {tokens:,} tokens: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def peak(tokens: int) -> float:
    """MB (10^6 bytes) that this process held at most, after it has evaluated that many tokens."""
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        _write(folder, tokens)
        import sae_transfer

        sae_transfer.evaluate(
            models={"tiny": str(folder / "model")},
            saes={"sae": str(folder / "sae")},
            rows=str(folder / "rows.jsonl"),
            out=folder / "run",
            device="cpu",
        )
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _write(folder: Path, tokens: int) -> None:
    import torch
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    metadata = SAEMetadata(hook_name="blocks.2.hook_resid_pre", prepend_bos=False, context_size=CONTEXT, model_name="tiny")
    StandardSAE(StandardSAEConfig(d_in=64, d_sae=512, metadata=metadata)).save_model(folder / "sae")
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(-(-tokens // CONTEXT)):
            file.write(json.dumps({"tokens": torch.randint(0, VOCAB, (CONTEXT,)).tolist()}) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(peak(int(sys.argv[1])))
    else:
        main()
