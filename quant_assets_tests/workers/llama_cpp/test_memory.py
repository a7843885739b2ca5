"""The allocator's worker: files without data, planned headers, and what llama.cpp refuses."""

from pathlib import Path

import pytest

from quant_assets.capacity.allocator import MAX_CELLS, AllocationJob, ask_allocator
from quant_assets.capacity.memory import Serving
from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.quantize.gguf.job import GgufPlanJob, plan_gguf
from quant_assets_tests.capacity.tiny_architectures import ARCHITECTURES, Tiny, write_tiny
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model

LLAMA = ARCHITECTURES[0]
SERVINGS = [Serving(context=512), Serving(context=4096, batch=2, kv_type_k="Q8_0")]


def header_of(path: Path, target: Path) -> Path:
    """Only the header of `path`, in a file of its own."""
    with path.open("rb") as stream:
        target.write_bytes(stream.read(read_gguf_header(path).data_start))
    return target


def test_a_header_without_data_gets_the_answer_of_the_whole_file(tmp_path: Path) -> None:
    whole = write_tiny(LLAMA, tmp_path / "whole.gguf")
    header = header_of(whole, tmp_path / "header.gguf")
    size = header.stat().st_size
    assert size < whole.stat().st_size / 10
    planned = ask_allocator(AllocationJob(model=header, servings=SERVINGS))
    real = ask_allocator(AllocationJob(model=whole, servings=SERVINGS, mode="real"))
    assert planned.allocations == real.allocations
    assert header.stat().st_size == size
    (main,) = planned.allocations[0].devices
    assert main.is_host
    assert main.state_bytes == 3 * 512 * 2 * 64 * 2 * 2  # layers, tokens, heads, K and V in F16
    assert planned.allocations[0].logits_bytes == 4 * LLAMA.vocabulary
    assert "llama.cpp" in planned.library_versions


@pytest.mark.parametrize(("architecture", "has_tokenizer"), [("gemma3", True), ("qwen3", False)])
def test_a_folder_is_asked_about_through_its_planned_header(
    architecture: str, has_tokenizer: bool, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model", architecture, tokenizer_model())
    if not has_tokenizer:
        (folder / "tokenizer.model").unlink()
    header = tmp_path / "planned.gguf"
    job = GgufPlanJob(
        source=folder,
        source_kind="hf",
        level="Q8_0",
        output=tmp_path / "out.gguf",
        header=header,
    )
    plan = plan_gguf(job)
    assert header.stat().st_size == plan.file_bytes
    assert header.stat().st_blocks * 512 < plan.file_bytes
    assert not (tmp_path / "out.gguf").exists()
    (allocation,) = ask_allocator(
        AllocationJob(model=header, servings=[Serving(context=256)])
    ).allocations
    assert allocation.weights_bytes == sum(group.size_bytes for group in plan.groups)
    assert allocation.state_bytes == 2 * 256 * 2 * 64 * 2 * 2


def test_what_llama_cpp_refuses_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = write_tiny(LLAMA, tmp_path / "model.gguf")
    with pytest.raises(InputError, match="n_seq_max must be <= 256"):
        ask_allocator(AllocationJob(model=path, servings=[Serving(context=256, batch=257)]))
    unknown = write_tiny(Tiny("unknown", "unheardof"), tmp_path / "unknown.gguf")
    with pytest.raises(InputError, match="unheardof"):
        ask_allocator(AllocationJob(model=unknown, servings=SERVINGS))
    too_many = Serving(context=MAX_CELLS, batch=2)
    with pytest.raises(InputError, match="cells"):
        ask_allocator(AllocationJob(model=path, servings=[Serving(), too_many]))


def test_real_allocation_needs_the_data(tmp_path: Path) -> None:
    whole = write_tiny(LLAMA, tmp_path / "whole.gguf")
    header = header_of(whole, tmp_path / "header.gguf")
    with pytest.raises(InputError):
        ask_allocator(AllocationJob(model=header, servings=SERVINGS, mode="real"))
