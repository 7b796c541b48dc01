"""GGUF headers: what a file promises is held against what it holds, before another reader believes it."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf as published
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_transfer.errors import UserError
from sae_transfer.sources.configs import ModelFacts, gguf_facts
from sae_transfer.sources.gguf import MOST_ENTRIES, header

ARRAY, UINT8, UINT32, STRING = 9, 0, 4, 8


def save_llama(path: Path) -> Path:
    """The header and random weights of a Llama of one layer, as the published writer writes them."""
    writer = published.GGUFWriter(path, "llama")
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_custom_alignment(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "b", "c"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0])
    random = np.random.default_rng(0)
    for name in ("token_embd", "blk.0.attn_q", "output_norm"):
        shape = (32,) if name == "output_norm" else (3, 32)
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    quantised = published.quants.quantize(
        random.standard_normal((2, 32)).astype(np.float32), published.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("blk.0.attn_k.weight", quantised, raw_dtype=published.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a whole small file."""
    return save_llama(tmp_path_factory.mktemp("gguf") / "model.gguf").read_bytes()


def of(*parts: bytes, keys: int = 0, tensors: int = 0, version: int = 3) -> bytes:
    """A header of these counts and parts."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def text(value: bytes, claims: int | None = None) -> bytes:
    """A string, and the length that it claims."""
    return struct.pack("<Q", len(value) if claims is None else claims) + value


def tensor(dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    """The description of a tensor named w."""
    said = len(dims) if n_dims is None else n_dims
    return text(b"w") + struct.pack("<I", said) + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


def test_a_whole_file_says_what_the_published_reader_reads(tmp_path: Path) -> None:
    """Every key, every array's length, every tensor's shape."""
    path = save_llama(tmp_path / "model.gguf")
    found, reader = header(path), published.GGUFReader(path)
    assert {*found.values, *found.lengths} == {key for key in reader.fields if not key.startswith("GGUF.")}
    assert {name: list(shape) for name, shape in found.shapes.items()} == {t.name: t.shape.tolist() for t in reader.tensors}
    assert gguf_facts(path) == ModelFacts("llama", 32, 1, 3, 64)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "array": (of(text(b"a"), struct.pack("<IIQ", ARRAY, UINT8, 2**62), keys=1), "claims 4611686018427387904 entries of 'a'"),
    "strings": (of(text(b"a"), struct.pack("<IIQ", ARRAY, STRING, 9), keys=1), "claims 9 entries of 'a', and 0 bytes"),
    "keys": (of(keys=2**63), "claims 9223372036854775808 keys"),
    "tensors": (of(tensors=2**63), "claims 9223372036854775808 tensors"),
    "key": (of(text(b"a", 2**62), b"0" * 99, keys=1), "a key has 4611686018427387904 bytes"),
    "value": (of(text(b"a"), struct.pack("<I", STRING), text(b"b", 2**40), keys=1), "'a' has 1099511627776 bytes"),
    "entry": (of(text(b"a"), struct.pack("<IIQ", ARRAY, STRING, 1), text(b"b", 77), keys=1), "entry 0 of 'a' has 77 bytes"),
    "kind": (of(text(b"a"), struct.pack("<I", 77), b"0" * 9, keys=1), "'a' is of type 77"),
    "nested": (of(text(b"a"), struct.pack("<I", ARRAY), struct.pack("<IQ", ARRAY, 1) * 99, keys=1), "more than 4 deep"),
    "many": (of(text(b"a"), struct.pack("<IIQ", ARRAY, UINT8, MOST_ENTRIES + 1), bytes(MOST_ENTRIES + 1), keys=1), "more than"),
    "twice": (of((text(b"a") + struct.pack("<IB", UINT8, 1)) * 2, keys=2), "key 'a' stands twice"),
    "not utf-8": (of(text(b"\xff"), bytes(20), keys=1), "a key is not UTF-8"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version": (of(version=1), "its version is 1"),
    "alignment": (of(text(b"general.alignment"), struct.pack("<II", UINT32, 3), keys=1), "general.alignment is 3"),
    "dimensions": (of(tensor(n_dims=2**31), bytes(64), tensors=1), "has 2147483648 dimensions"),
    "shape": (of(tensor((2**60, 2**60)), bytes(64), tensors=1), "has 5316911983139663491615228241121378304 bytes"),
    "no rows": (of(tensor((0,)), bytes(64), tensors=1), r"shape (0,)"),
    "block": (of(tensor((33,), kind=8), bytes(64), tensors=1), "blocks of 32"),
    "type": (of(tensor(kind=4), bytes(64), tensors=1), "is of type 4, which is not known"),
    "offset": (of(tensor(offset=2**62), bytes(64), tensors=1), "16 bytes at 4611686018427387968, the file"),
    "unaligned": (of(tensor(offset=8), bytes(64), tensors=1), "lies at 8, no multiple of 32"),
    "one twice": (of(tensor(), tensor(offset=32), bytes(64), tensors=2), "tensor 'w' stands twice"),
    "overlapping": (of(tensor((64,)), tensor().replace(b"w", b"v"), bytes(512), tensors=2), "lies at 0, within another"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    """In one line that names what is wrong, and its value."""
    content, says = HOSTILE[name]
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UserError) as caught:
        gguf_facts(tmp_path / "model.gguf")
    assert caught.value.code == "E-MODEL"
    assert says in str(caught.value)


def truncated(content: bytes, at: int, _: int) -> bytes:
    """Its first bytes."""
    return content[:at]


def byte_changed(content: bytes, at: int, value: int) -> bytes:
    """One byte is another."""
    return content[:at] + bytes([value % 256]) + content[at + 1 :]


def field_changed(content: bytes, at: int, value: int) -> bytes:
    """Eight bytes are another number."""
    return content[:at] + struct.pack("<Q", value) + content[at + 8 :]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    damage=st.sampled_from([truncated, byte_changed, field_changed]),
    at=st.integers(0, 1200),
    value=st.one_of(st.integers(0, 255), st.integers(0, 2**64 - 1), st.sampled_from([2**31, 2**62, 2**63, 2**64 - 1])),
)
def test_damage_is_refused_or_harmless(
    valid: bytes, tmp_path: Path, damage: Callable[[bytes, int, int], bytes], at: int, value: int
) -> None:
    """Whatever is cut or overwritten: one line, or a header that the published reader can read to its end."""
    path = tmp_path / "model.gguf"
    path.write_bytes(damage(valid, min(at, len(valid) - 8), value))
    try:
        header(path)
    except UserError:
        return
    published.GGUFReader(path)


def test_a_config_of_more_layers_than_tensors_is_refused(tmp_path: Path) -> None:
    """transformers would build every layer before it missed one."""
    content = save_llama(tmp_path / "whole.gguf").read_bytes()
    at = content.index(b"block_count") + len("block_count") + 4
    (tmp_path / "model.gguf").write_bytes(content[:at] + struct.pack("<I", 10**9) + content[at + 4 :])
    with pytest.raises(UserError, match="says 1000000000 layers, the weights have 4 tensors"):
        gguf_facts(tmp_path / "model.gguf")
