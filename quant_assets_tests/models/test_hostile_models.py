"""Hostile models: paths out of the folder, pickles, memory bombs, lying headers."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.formats.json_files import MAX_BYTES, MAX_DEPTH, parse_json, read_json_object
from quant_assets.formats.safetensors_header import (
    read_safetensors_header,
    tensors_of_folder,
    weight_files,
)
from quant_assets.models.hf_config import MAX_LAYERS, read_config
from quant_assets.models.identity import model_files
from quant_assets.models.inspection import inspect_model
from quant_assets.models.integrity import check_gguf, check_hf_folder
from quant_assets.models.linked_model import linked_model
from quant_assets.models.source import resolve_source
from quant_assets.models.stored_quantization import detect_quantization
from quant_assets.settings import Settings, get_settings
from quant_assets_tests.models.small_files import CONFIG, hf_tensors, write_gguf, write_hf
from quant_assets_tests.mutation import bounded

LLAMA = {**CONFIG, "architectures": ["LlamaForCausalLM"]}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "model", LLAMA)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("QUANT_ASSETS_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    yield get_settings()
    get_settings.cache_clear()


def index_all(folder: Path, name: str) -> None:
    index = {"weight_map": dict.fromkeys(hf_tensors(), name)}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    ["../victim/x.safetensors", "{abs}/x.safetensors", "a/b.safetensors", "..", "", ".",
     "pytorch_model.bin", "x.safetensors\x00", "..\\x.safetensors", "x\n.safetensors", "x" * 300 + ".safetensors"],
)  # fmt: skip
def test_an_index_only_names_files_in_its_folder(name: str, folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    shutil.copy(folder / "model.safetensors", victim / "x.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "pytorch_model.bin")
    index_all(folder, name.format(abs=victim))
    for read in (inspect_model, check_hf_folder, weight_files, tensors_of_folder):
        with pytest.raises(InputError, match="does not name a safetensors file in its folder"):
            read(folder)


def test_a_link_out_of_the_folder_is_refused(
    folder: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("model.safetensors", "config.json", "secret.txt"):
        target = elsewhere / name
        target.write_bytes((folder / name).read_bytes() if name != "secret.txt" else b"secret")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        with pytest.raises(InputError, match="leads out of the model's folder"):
            resolve_source(str(folder), settings)
        if name == "model.safetensors":
            with pytest.raises(InputError, match="leads out of the model's folder"):
                inspect_model(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(target.read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(elsewhere / "model.safetensors")
    monkeypatch.setenv("QUANT_ASSETS_MODEL_ROOTS", json.dumps([str(elsewhere)]))
    get_settings.cache_clear()
    assert inspect_model(folder).n_layers == 2


def test_links_of_the_hubs_cache_are_followed(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    cache = tmp_path / "hub" / "models--a--b"
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = cache / "blobs" / str(number)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    source = resolve_source(str(snapshot), settings)
    assert source.identity == resolve_source(str(folder), settings).identity
    with linked_model(snapshot) as links:
        assert inspect_model(snapshot).n_layers == 2
        assert (links / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    # A folder that only calls itself `blobs` opens no way out of the cache.
    victim = tmp_path / "victim"
    victim.mkdir()
    shutil.copy(folder / "model.safetensors", victim / "x")
    shutil.rmtree(cache / "blobs")
    (cache / "blobs").symlink_to(victim)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/x")
    with pytest.raises(InputError):
        weight_files(snapshot)


def test_loaders_only_see_the_models_own_files(folder: Path) -> None:
    save_file({"x": np.zeros(4, np.float32)}, folder / "consolidated.safetensors")
    for name in ("pytorch_model.bin", "model.pt", "model.pth", "evil.py", "adapter_config.json"):
        (folder / name).write_bytes(b"{}")
    (folder / "README.md").write_text("# A card that the converter reads")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    with linked_model(folder) as links:
        seen = {str(file.relative_to(links)) for file in links.rglob("*") if file.is_file()}
        assert links.name == folder.name
    assert seen == {"config.json", "model.safetensors", "README.md", "1_Pooling/config.json"}
    assert {folder / name for name in seen} <= set(model_files(folder))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "README.md", "1_Pooling/config.json", INDEX]
)
def test_another_file_is_another_source(name: str, folder: Path, settings: Settings) -> None:
    index_all(folder, "model.safetensors")
    (folder / "1_Pooling").mkdir()
    before = resolve_source(str(folder), settings).identity
    file = folder / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, "changed": True}))
    assert resolve_source(str(folder), settings).identity != before


@pytest.mark.parametrize("place", ["../victim", "/etc", "a/b", 3, None])
def test_modules_lie_inside_the_folder(place: object, folder: Path) -> None:
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    check_hf_folder(folder)
    modules[1]["path"] = place  # type: ignore[assignment]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="does not name modules"):
        check_hf_folder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 300_000_000},
        {"num_hidden_layers": MAX_LAYERS},  # within the limit, but the files do not hold them
        {"vocab_size": 10**400},
        {"num_experts": 2**31},
        {"num_attention_heads": -4},
        {"num_attention_heads": 2.5},
        {"hidden_size": "64"},
        {"hidden_size": True},
        {"hidden_size": float("nan")},
        {"intermediate_size": float("inf")},
        {"max_position_embeddings": -512},
        {"num_key_value_heads": [2, -1]},
        {"text_config": {**CONFIG, "num_hidden_layers": 10**9}},
        {"vision_config": {"num_hidden_layers": 10**9}},
    ],
    ids=str,
)
def test_impossible_counts_in_a_configuration(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", {**LLAMA, **changes})
    with bounded(), pytest.raises(InputError):
        inspect_model(folder)
        check_hf_folder(folder)


def test_infinity_where_published_models_have_it(tmp_path: Path) -> None:
    config = {**LLAMA, "time_step_limit": [0.0, float("inf")], "sliding_window": None}
    folder = write_hf(tmp_path / "model", config)
    check_hf_folder(folder)
    assert inspect_model(folder).n_layers == 2


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": [' + b"[]," * 2_000_000 + b"0]}",
        b"\xff\xfe{}",
        b"[]",
        b"",
    ],
    ids=["lists", "objects", "depth", "twice", "surrogate", "digits", "many", "utf-16", "[]", ""],
)
def test_hostile_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with bounded(), pytest.raises(InputError, match=r"config\.json"):
        read_json_object(path)


def test_json_limits_leave_room_for_real_files(tmp_path: Path) -> None:
    nested: Any = 0
    for _ in range(MAX_DEPTH - 1):
        nested = [nested]
    assert parse_json(json.dumps({"a": nested}).encode()) == {"a": nested}
    index = {"weight_map": {f"model.layers.{n}.weight": "a.safetensors" for n in range(100_000)}}
    assert len(parse_json(json.dumps(index).encode())["weight_map"]) == 100_000
    large = tmp_path / "large.json"
    with large.open("wb") as stream:
        stream.truncate(2 * MAX_BYTES)  # a hole: nothing is written
    with bounded(), pytest.raises(InputError, match="bytes"):
        read_json_object(large)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
def test_what_is_not_a_file_is_not_read(make: Callable[[Path], None], folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        make(folder / name)
        with bounded(), pytest.raises(InputError):
            inspect_model(folder)
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
        (folder / name).write_bytes(content)


def safetensors(path: Path, entries: dict[str, Any], data_bytes: int) -> Path:
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data_bytes))
    return path


def entry(begin: int, end: int, **changes: Any) -> dict[str, Any]:
    return {
        "dtype": "F32",
        "shape": [(end - begin) // 4],
        "data_offsets": [begin, end],
        **changes,
    }


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 16)}, "gap"),
        ({"a": entry(4, 16)}, "gap"),
        ({"a": entry(0, 16), "b": entry(0, 16)}, "overlaps"),
        ({"a": entry(0, 12)}, "describes"),
        ({"a": entry(0, 16, dtype="F99")}, "is invalid"),
        ({"a": entry(0, 16, shape=[-4])}, "is invalid"),
        ({"a": entry(0, 16, shape=[4.0])}, "is invalid"),
        ({"a": entry(0, 16, shape=[True])}, "is invalid"),
        ({"a": entry(0, 16, shape=[2**40, 2**40])}, "needs"),
        ({"a": entry(0, 16, shape=[5])}, "needs"),
        ({"a": entry(0, 16, dtype="F4", shape=[31])}, "needs"),
        ({"a": entry(16, 0, shape=[4])}, "needs"),
        ({"a": entry(0, 16, data_offsets=[0])}, "is invalid"),
        ({"a": []}, "is invalid"),
        ({"__metadata__": {"a": 1}, "a": entry(0, 16)}, "metadata"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_safetensors_with_wrong_extents(entries: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "model.safetensors", entries, 16)
    with pytest.raises(InputError) as caught:
        read_safetensors_header(path)
    assert why in caught.value.why


def test_safetensors_cut_anywhere(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in range(8, len(whole), 499):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="cut off"):
            inspect_model(folder)
        with pytest.raises(InputError, match="cut off"):
            check_hf_folder(folder)


def test_scalars_and_empty_tensors_are_tensors(tmp_path: Path) -> None:
    path = safetensors(
        tmp_path / "model.safetensors",
        {"a": entry(0, 4, shape=[]), "b": entry(4, 4, shape=[0, 7]), "c": entry(4, 16)},
        16,
    )
    assert [tensor.n_elements for tensor in read_safetensors_header(path).tensors.values()] == [
        1, 0, 3,
    ]  # fmt: skip


def test_two_files_with_one_tensor(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-a.safetensors")
    shutil.copy(folder / "model-a.safetensors", folder / "model-b.safetensors")
    with pytest.raises(InputError, match="Two files"):
        inspect_model(folder)


def kv(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return (
        struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        + b"".join(struct.pack("<Q", extent) for extent in shape)
        + struct.pack("<IQ", kind, offset)
    )  # fmt: skip


def raw_gguf(
    path: Path,
    *,
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    counts: tuple[int, int] | None = None,
    data_bytes: int = 4096,
    version: bytes = struct.pack("<I", 3),
) -> Path:
    keys = keys or []
    tensors = [tensor("a.weight", [32])] if tensors is None else tensors
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    head = b"GGUF" + version + struct.pack("<QQ", n_tensors, n_keys)
    path.write_bytes(head + b"".join(keys) + b"".join(tensors) + bytes(data_bytes))
    return path


NUMBER = struct.pack("<I", 7)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"tensors": [tensor("a", [32]), tensor("b", [32], offset=96)]}, "lies at"),
        ({"tensors": [tensor("a", [64]), tensor("b", [32], offset=128)]}, "lies at"),
        ({"tensors": [tensor("a", [32]), tensor("b", [32], offset=129)]}, "lies at"),
        ({"tensors": [tensor("a", [32]), tensor("a", [32], offset=128)]}, "occurs twice"),
        ({"tensors": [tensor("a", [32], kind=99)]}, "unknown type"),
        ({"tensors": [tensor("a", [0])]}, "shape"),
        ({"tensors": [tensor("a", [2**32, 2**32])]}, "shape"),
        ({"tensors": [tensor("a", [33], kind=8)]}, "not a multiple"),
        ({"tensors": [tensor("a", [32] * 5)]}, "dimensions"),
        ({"tensors": [tensor("a" * 64, [32])]}, "name"),
        ({"tensors": [tensor("", [32])]}, "name"),
        ({"keys": [kv("a", 4, NUMBER), kv("a", 4, NUMBER)]}, "occurs twice"),
        ({"keys": [kv("\0a", 4, NUMBER)]}, "not a name"),
        ({"keys": [kv("", 4, NUMBER)]}, "not a name"),
        ({"keys": [kv("general.alignment", 4, NUMBER)]}, "power of two"),
        ({"keys": [kv("general.alignment", 4, bytes(4))]}, "power of two"),
        ({"keys": [kv("general.alignment", 10, struct.pack("<Q", 32))]}, "power of two"),
        ({"keys": [kv("general.alignment", 4, struct.pack("<I", 2**31))]}, "alignment"),
        ({"keys": [kv("a", 13, NUMBER)]}, "unknown type"),
        ({"keys": [kv("a", 9, struct.pack("<IQ", 9, 3))]}, "unknown type"),
        ({"keys": [kv("a", 9, struct.pack("<IQ", 8, 2**62))]}, "strings"),
        ({"keys": [kv("a", 9, struct.pack("<IQ", 4, 2**62))]}, "past the end"),
        ({"keys": [kv("a", 8, struct.pack("<Q", 2**63))]}, "past the end"),
        ({"counts": (2**63, 0)}, "claims"),
        ({"counts": (1, 2**63)}, "claims"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_gguf_headers_with_wrong_values(parts: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = raw_gguf(tmp_path / "model.gguf", **parts)
    with bounded(), pytest.raises(InputError, match="header is damaged") as caught:
        read_gguf_header(path)
    assert why in caught.value.why


def test_the_headers_above_are_refused_for_their_faults_alone(tmp_path: Path) -> None:
    tensors = [tensor("a", [32]), tensor("b", [32], offset=128)]
    keys = [kv("a", 4, NUMBER), kv("general.alignment", 4, struct.pack("<I", 64))]
    header = read_gguf_header(raw_gguf(tmp_path / "model.gguf", keys=keys, tensors=tensors))
    assert header.data_start % 64 == 0
    assert [tensor.n_bytes for tensor in header.tensors] == [128, 128]


def test_a_text_longer_than_any_model_needs(tmp_path: Path) -> None:
    text = struct.pack("<Q", 5_000_000) + bytes(5_000_000)
    path = raw_gguf(tmp_path / "model.gguf", keys=[kv("a", 8, text)])
    with pytest.raises(InputError, match="longer than any model needs"):
        read_gguf_header(path)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (struct.pack("<I", 1), "version 1"),
        (struct.pack("<I", 4), "version 4"),
        (struct.pack(">I", 3), "version 3, big-endian"),
    ],
)
def test_other_versions_of_gguf(version: bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=expected):
        check_gguf(raw_gguf(tmp_path / "model.gguf", version=version))


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_count", 300_000_000), ("expert_count", 2**31), ("attention.head_count", 2**32 - 1)],
)
def test_memory_bombs_in_gguf_files(
    key: str, value: int, tmp_path: Path, settings: Settings
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    counts = {"block_count": 2, "embedding_length": 64, "attention.head_count": 4, key: value}
    for name, count in counts.items():
        writer.add_uint32(f"llama.{name}", count)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.ones((2, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for read in (inspect_model, check_gguf, lambda path: resolve_source(str(path), settings)):
        with bounded(), pytest.raises(InputError, match=f"llama.{key} is {value}"):
            read(tmp_path / "model.gguf")


def test_one_part_of_several_is_refused_by_every_command(
    tmp_path: Path, settings: Settings
) -> None:
    keys = [kv("split.count", 2, struct.pack("<H", 3))]
    path = raw_gguf(tmp_path / "model-00001-of-00003.gguf", keys=keys)
    for read in (check_gguf, lambda path: resolve_source(str(path), settings)):
        with pytest.raises(InputError, match="one of 3 parts"):
            read(path)


@pytest.mark.parametrize("command", ["info", "validate"])
def test_commands_refuse_a_file_cut_in_its_weights(command: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-200])
    run = CliRunner().invoke(app, [command, str(path)])
    assert getattr(run.exception, "exit_code", None) == 3
    assert "cut off" in str(run.exception)


@pytest.mark.parametrize(
    "content", [b'{"files": []}', b"\xff", b"[]", b'{"name": "a web app", "icons": []}']
)
def test_manifests_that_are_not_ours(content: bytes, folder: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    (tmp_path / "manifest.json").write_bytes(content)
    assert CliRunner().invoke(app, ["info", str(file)]).exit_code == 0
    (folder / "manifest.json").write_bytes(content)
    run = CliRunner().invoke(app, ["info", str(folder)])
    assert getattr(run.exception, "exit_code", None) == 3
    assert str(folder / "manifest.json") in str(run.exception)


def test_a_layer_type_that_is_not_a_name(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", {**LLAMA, "layer_types": [[], {}]})
    assert inspect_model(folder).kv_heads_by_layer == (2, 2)


def test_a_quantization_of_impossible_bits(tmp_path: Path) -> None:
    for bits in (0, -4, True, "4", 10**400, float("nan"), None):
        config = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": bits}}
        folder = write_hf(tmp_path / "model", config)
        with pytest.raises(InputError, match=r"quantization of .* is not supported"):
            detect_quantization(folder)
        assert read_config(folder)["vocab_size"] == 100
