"""Importance matrices: measured correctly, stored in llama.cpp's layout, and used."""

import json
from pathlib import Path

import numpy as np
import pytest

from quant_assets.errors import InputError
from quant_assets.quantize.gguf.job import ImatrixJob, QuantizeGgufJob, make_imatrix, quantize_gguf
from quant_assets.workers.gguf.imatrix_file import MatrixInputs, read_imatrix, write_imatrix

CHUNK = 64
CHUNKS = 3


@pytest.fixture(scope="module", params=["llama", "mixtral_4"])
def measured(
    request: pytest.FixtureRequest,
    models: dict[str, Path],
    bf16_files: dict[str, Path],
    calibration: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """A tiny model and the importance matrix that the worker measures on it."""
    output = tmp_path_factory.mktemp("measured") / "model.imatrix.gguf"
    # One from each kind of source.
    is_folder = request.param == "llama"
    result = make_imatrix(
        ImatrixJob(
            source=(models if is_folder else bf16_files)[request.param],
            source_kind="hf" if is_folder else "gguf",
            source_identity="a model",
            calibration=calibration,
            calibration_name="python reference",
            output=output,
            threads=1,
            chunk_tokens=CHUNK,
            max_chunks=CHUNKS,
        )
    )
    assert result.n_chunks == CHUNKS
    assert result.n_tokens == CHUNKS * CHUNK
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    return models[request.param], output


def test_values_agree_with_transformers(
    measured: tuple[Path, Path], bf16_files: dict[str, Path], calibration: Path
) -> None:
    """Hook the same matrices in another implementation of the model, on the same tokens."""
    import llama_cpp
    import torch
    from transformers import AutoModelForCausalLM

    folder, file = measured
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # SentencePiece would normalize the text's white space; llama.cpp does not.
    vocabulary = llama_cpp.Llama(str(bf16_files[folder.name]), vocab_only=True, verbose=False)
    tokens = vocabulary.tokenize(calibration.read_bytes())
    sums = {"blk.0.attn_q.weight": 0.0, "blk.1.attn_output.weight": 0.0}
    observed = {
        "blk.0.attn_q.weight": model.model.layers[0].self_attn.q_proj,
        "blk.1.attn_output.weight": model.model.layers[1].self_attn.o_proj,
    }
    for name, module in observed.items():

        def add(_: object, inputs: tuple[torch.Tensor], name: str = name) -> None:
            sums[name] = sums[name] + inputs[0].square().sum(dim=(0, 1)).numpy()

        module.register_forward_pre_hook(add)
    with torch.inference_mode():
        for first in range(0, CHUNKS * CHUNK, CHUNK):
            model(torch.tensor([[1, *tokens[first + 1 : first + CHUNK]]]))
    matrix = read_imatrix(file)
    for name, expected in sums.items():
        found = matrix.values(name)
        assert found is not None
        # llama.cpp multiplies bfloat16 weights by activations rounded to bfloat16
        np.testing.assert_allclose(found, expected / (CHUNKS * CHUNK), rtol=0.05)


def test_the_file_has_the_layout_of_llama_imatrix(measured: tuple[Path, Path]) -> None:
    from gguf import GGUFReader

    folder, file = measured
    reader = GGUFReader(file)
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert keys == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["python reference"]
    shapes = {tensor.name: [int(n) for n in tensor.shape] for tensor in reader.tensors}
    assert shapes["blk.0.attn_q.weight.in_sum2"] == [256, 1]
    assert shapes["blk.0.attn_q.weight.counts"] == [1, 1]
    assert not any(name.startswith(("output", "token_embd")) for name in shapes)
    counts = {t.name: t.data for t in reader.tensors if t.name.endswith(".counts")}
    assert float(counts["blk.0.attn_q.weight.counts"].item()) == CHUNKS * CHUNK
    if "num_local_experts" in json.loads((folder / "config.json").read_text()):
        assert shapes["blk.0.ffn_up_exps.weight.in_sum2"] == [256, 4]
        # each token goes to two of the four experts
        assert counts["blk.0.ffn_up_exps.weight.counts"].sum() == 2 * CHUNKS * CHUNK


def test_a_level_that_needs_one_uses_it(measured: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = measured
    result = quantize_gguf(
        QuantizeGgufJob(
            source=folder,
            source_kind="hf",
            source_identity="a model",
            level="iq3_xxs",
            output=tmp_path / "model.gguf",
            imatrix=file,
            threads=1,
        )
    )
    assert result.type_policy == "dry_run"
    assert result.validated
    assert result.tensor_types["IQ3_XXS"] > 0


def test_write_and_read(tmp_path: Path) -> None:
    sums = np.array([[2.0, 4.0], [3.0, 9.0], [0.0, 0.0]])
    inputs = {"blk.0.x.weight": MatrixInputs(sums, np.array([2, 3, 0]))}
    write_imatrix(tmp_path / "m.gguf", inputs, dataset="d" * 200, n_chunks=7, chunk_tokens=512)
    matrix = read_imatrix(tmp_path / "m.gguf")
    values = matrix.values("blk.0.x.weight")
    assert values is not None
    assert values.tolist() == [1.0, 2.0, 1.0, 3.0, 1.0, 1.0]  # an expert without data counts as 1
    assert matrix.values("blk.1.x.weight") is None
    assert matrix.header_values == {
        "quantize.imatrix.file": "m.gguf",
        "quantize.imatrix.dataset": "d" * 127,
        "quantize.imatrix.entries_count": 1,
        "quantize.imatrix.chunks_count": 7,
    }


def test_non_finite_values_are_rejected(tmp_path: Path) -> None:
    inputs = {"blk.0.x.weight": MatrixInputs(np.array([[1.0, np.inf]]), np.array([1]))}
    write_imatrix(tmp_path / "m.gguf", inputs, dataset="d", n_chunks=1, chunk_tokens=512)
    with pytest.raises(InputError, match="is damaged"):
        read_imatrix(tmp_path / "m.gguf")


def test_a_text_that_is_too_short(bf16_files: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Two words.")
    with pytest.raises(InputError, match="too short"):
        make_imatrix(
            ImatrixJob(
                source=bf16_files["llama"],
                source_kind="gguf",
                source_identity="a model",
                calibration=text,
                calibration_name="short",
                output=tmp_path / "m.gguf",
                chunk_tokens=CHUNK,
            )
        )
