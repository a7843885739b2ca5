"""The project's kernels reproduce ggml's bytes, and are not used where they do not."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.gguf.job import QuantizeGgufJob
from quant_assets.workers.gguf import ggml
from quant_assets.workers.gguf.engine import quantize
from quant_assets.workers.gguf.kernels.build import build, library_path
from quant_assets.workers.gguf.kernels.quantizer import KERNEL_TYPES, Quantizer

Floats = npt.NDArray[np.float32]
BLOCK = 256
MAGNITUDES = (1e-44, 1e-39, 1e-30, 1e-15, 1e-7, 1e-3, 1.0, 1e3, 1e18, 1e37)


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no compiler")
    return found


@pytest.fixture(scope="module")
def own(compiler: str) -> Quantizer:
    """A quantizer with the kernels of this source, built for this processor."""
    library = build(compiler, native=True)
    return Quantizer(map(ggml.type_of_name, KERNEL_TYPES), pytest.fail, library)


def blocks_of(quantizer: Quantizer, name: str, rows: Floats, weights: Floats | None) -> bytes:
    ggml_type = ggml.type_of_name(name)
    n_rows, row_elements = rows.shape
    blocks = np.zeros(n_rows * ggml.row_bytes(ggml_type, row_elements), dtype=np.uint8)
    address = None if weights is None else weights.ctypes.data
    quantizer.quantize(
        ggml_type, rows.ctypes.data, blocks.ctypes.data, n_rows, row_elements, address
    )
    return blocks.tobytes()


@pytest.fixture(scope="module")
def reference() -> Quantizer:
    """ggml alone: the library given to it holds no kernels."""
    library = Path(ggml.base_library()._name)
    quantizer = Quantizer(map(ggml.type_of_name, KERNEL_TYPES), pytest.fail, library)
    assert set(quantizer.kernels.values()) == {"ggml"}
    return quantizer


@st.composite
def hard_rows(draw: st.DrawFn) -> Floats:
    """One to four rows of one to three super-blocks with groups of very different magnitude and shape."""
    n_rows, row = draw(st.integers(1, 4)), BLOCK * draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.standard_normal((n_rows, row // 16, 16))
    shape = values.shape[:2]
    kinds = draw(arrays(np.int8, shape, elements=st.integers(0, 6)))
    sizes = draw(arrays(np.int8, shape, elements=st.integers(0, len(MAGNITUDES) - 1)))
    if draw(st.booleans()):
        sizes[:] = sizes[0, 0]
    values[kinds == 1] = 0
    values[kinds == 2] = values[kinds == 2][:, :1]
    values[kinds == 3] = -1 - abs(values[kinds == 3])
    values[kinds == 4] = np.round(values[kinds == 4] * 4) / 8
    values[kinds == 5] *= np.where(generator.random((int((kinds == 5).sum()), 16)) < 0.1, 1000, 1)
    values[kinds == 6] = 1 + 1e-6 * values[kinds == 6]
    with np.errstate(over="ignore"):
        rows = (values * np.array(MAGNITUDES)[sizes][..., None]).astype(np.float32)
    rows[~np.isfinite(rows)] = np.finfo(np.float32).max
    if draw(st.booleans()):  # bfloat16
        rows.view(np.uint32)[:] &= 0xFFFF0000
    return rows.reshape(n_rows, row)


@pytest.mark.parametrize("name", KERNEL_TYPES)
@settings(max_examples=150, deadline=None)
@given(rows=hard_rows(), seed=st.integers(0, 2**32 - 1), zero_share=st.sampled_from([0, 0.5, 1]))
def test_same_bytes_as_ggml(
    own: Quantizer, reference: Quantizer, name: str, rows: Floats, seed: int, zero_share: float
) -> None:
    assert own.kernels[name] == "own"
    generator = np.random.default_rng(seed)
    weights = generator.gamma(0.5, 1, rows.shape[1]).astype(np.float32)
    weights[generator.random(weights.size) < zero_share] = 0
    for importances in (None, weights):
        assert blocks_of(own, name, rows, importances) == blocks_of(
            reference, name, rows, importances
        )


@pytest.mark.parametrize("name", KERNEL_TYPES)
def test_same_bytes_in_a_portable_build(
    compiler: str, reference: Quantizer, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "portable"
    library = build(compiler, native=False, folder=folder)
    portable = Quantizer([ggml.type_of_name(name)], pytest.fail, library)
    rows = np.random.default_rng(5).standard_normal((11, 3 * BLOCK), dtype=np.float32)
    assert blocks_of(portable, name, rows, None) == blocks_of(reference, name, rows, None)


def test_another_processor_does_not_load_this_library(monkeypatch: pytest.MonkeyPatch) -> None:
    here, anywhere = library_path(native=True), library_path(native=False)
    monkeypatch.setattr("quant_assets.workers.gguf.kernels.build._processor", lambda: "flags: fpu")
    assert library_path(native=True) != here
    assert library_path(native=False) == anywhere


def test_a_kernel_with_other_bytes_is_rejected(compiler: str, tmp_path: Path) -> None:
    source = tmp_path / "wrong.cpp"
    source.write_text(
        "#include <cstdint>\n"
        '#define WRONG extern "C" __attribute__((visibility("default")))\n'
        "WRONG void quantize_q6_k(const float *, void *, int64_t, int64_t, const float *) {}\n"
    )
    library = build(compiler, native=True, source=source, folder=tmp_path)
    reasons: list[str] = []
    types = [ggml.type_of_name(name) for name in ("Q6_K", "Q4_K", "Q8_0", "BF16")]
    quantizer = Quantizer(types, reasons.append, library)
    assert quantizer.kernels == {"Q8_0": "ggml", "Q4_K": "ggml", "Q6_K": "ggml"}
    assert reasons == ["The kernel for Q6_K does not reproduce ggml's bytes here; using ggml's."]
    rows = np.ones((1, BLOCK), dtype=np.float32)
    assert any(blocks_of(quantizer, "Q6_K", rows, None))


def test_an_invalid_library_is_rejected(tmp_path: Path) -> None:
    library = tmp_path / "broken.so"
    library.write_bytes(b"not a library")
    reasons: list[str] = []
    quantizer = Quantizer([ggml.type_of_name("Q4_K")], reasons.append, library)
    assert quantizer.kernels == {"Q4_K": "ggml"}
    assert "cannot be loaded" in reasons[0]


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path, compiler: str) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("no program")
    with pytest.raises(subprocess.CalledProcessError):
        build(compiler, native=True, source=source, folder=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_engine_uses_the_kernels(
    own: Quantizer, job: QuantizeGgufJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = quantize(job, EventChannel(io.StringIO()))
    assert fast.kernels == {"Q4_K": "own", "Q6_K": "own"}
    monkeypatch.setattr(
        "quant_assets.workers.gguf.kernels.quantizer.library_path",
        lambda **_: tmp_path / "nowhere",
    )
    other = job.model_copy(update={"output": tmp_path / "ggml" / "model.gguf"})
    slow = quantize(other, EventChannel(io.StringIO()))
    assert set(slow.kernels.values()) == {"ggml"}
    assert slow.sha256 == fast.sha256


def test_the_engine_logs_a_rejected_kernel(
    job: QuantizeGgufJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(
        "quant_assets.workers.gguf.kernels.quantizer.library_path", lambda **_: broken
    )
    stream = io.StringIO()
    result = quantize(job, EventChannel(stream))
    assert set(result.kernels.values()) == {"ggml"}
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert any("cannot be loaded" in event.get("message", "") for event in events)
