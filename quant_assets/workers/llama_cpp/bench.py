"""Worker: one benchmark cell of a GGUF file on llama.cpp, through its C API.

The procedure is that of llama-bench and llama-batched-bench: all prompts in one batch, then one
batch per step with one token per sequence; tokens are random (their values do not change the
work), and the clock is read after `llama_synchronize`.
"""

import random
import time
from typing import Any

import llama_cpp

from quant_assets.bench.jobs import LOAD, RUNS, WARM_UP, CellJob, CellMeasurement, RunSample
from quant_assets.host.conditions import HostWatch, cpu_name, gpu_name
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.cell_runs import sampled_runs
from quant_assets.workers.llama_cpp import native as llama_native
from quant_assets.workers.llama_cpp.gpu_memory import GpuMemory

_SEED = 1234
_BATCH_TOKENS = 2048  # llama.cpp's default n_batch


class _Cell:
    """A model in a context, ready for runs."""

    def __init__(self, job: CellJob, model: Any, native_context: Any) -> None:
        self._job = job
        self._context = native_context
        self._memory = llama_cpp.llama_get_memory(native_context)
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._random = random.Random(_SEED)  # noqa: S311 - token values, no secret
        self._prompts = [
            llama_native.Batch(_BATCH_TOKENS)
            for _ in range(-(-job.batch_size * job.prompt_tokens // _BATCH_TOKENS))
        ]
        self._step = llama_native.Batch(job.batch_size)

    def run(self) -> RunSample:
        """Prefill and decode once, starting with an empty cache."""
        job = self._job
        llama_cpp.llama_memory_clear(self._memory, False)
        self._fill_prompts()
        start = time.perf_counter_ns()
        for batch in self._prompts:
            batch.decode(self._context)
        first = last = time.perf_counter_ns()
        token_ms = []
        for position in range(job.prompt_tokens, job.prompt_tokens + job.generated_tokens):
            self._step.clear()
            for sequence in range(job.batch_size):
                self._step.add(self._random_token(), position, sequence, logits=True)
            self._step.decode(self._context)
            now = time.perf_counter_ns()
            token_ms.append((now - last) / 1e6)
            last = now
        return RunSample(
            time_to_first_token_ms=(first - start) / 1e6,
            token_ms=token_ms,
            total_ms=(last - start) / 1e6,
        )

    def _random_token(self) -> int:
        return self._random.randrange(self._n_vocab)

    def _fill_prompts(self) -> None:
        job = self._job
        for batch in self._prompts:
            batch.clear()
        for index in range(job.batch_size * job.prompt_tokens):
            sequence, position = divmod(index, job.prompt_tokens)
            self._prompts[index // _BATCH_TOKENS].add(
                self._random_token(), position, sequence, logits=position == job.prompt_tokens - 1
            )


def measure(job: CellJob, channel: EventChannel) -> CellMeasurement:
    """Load the model and run the cell."""
    watch = HostWatch()
    log = llama_native.NativeLog()
    device = llama_native.resolve_device(job.device)
    gpu = GpuMemory()
    channel.plan_steps({LOAD: 20, WARM_UP: 20, RUNS: 60})
    channel.progress(LOAD, 0, 1, "models")
    started = time.perf_counter()
    with (
        llama_native.loaded_model(job.model_path, device) as model,
        llama_native.context(
            model,
            tokens_per_sequence=job.prompt_tokens + job.generated_tokens,
            sequences=job.batch_size,
            threads=job.threads,
            batch_tokens=_BATCH_TOKENS,
            cache_type_k=job.cache_type_k,
            cache_type_v=job.cache_type_v,
        ) as native_context,
    ):
        load_time_ms = (time.perf_counter() - started) * 1000
        vram_bytes = gpu.growth_bytes() if device == "cuda" else None
        if vram_bytes is not None:
            allocated = (vram_bytes, vram_bytes)
            channel.read_vram_with(lambda: allocated)
        channel.progress(LOAD, 1, 1, "models")
        cell = _Cell(job, model, native_context)
        samples = sampled_runs(cell.run, job, channel)
        conditions = watch.finish()
        memory = channel.memory_usage()
        cells = llama_cpp.llama_n_ctx(native_context)
        return CellMeasurement(
            load_time_ms=load_time_ms,
            samples=samples,
            peak_rss_bytes=memory.peak_rss_bytes,
            peak_own_bytes=memory.peak_own_bytes,
            peak_vram_bytes=gpu.growth_bytes() if device == "cuda" else None,
            kv_cache_bytes=log.kv_cache_bytes(),
            kv_cache_bytes_expected=llama_native.kv_cache_arithmetic(
                model, cells, (job.cache_type_k, job.cache_type_v)
            ),
            conditions=conditions,
            library_versions=llama_native.library_versions(),
            build_flags=llama_cpp.llama_print_system_info().decode().strip(),
            cpu_name=cpu_name(),
            gpu_name=gpu_name() if device == "cuda" else None,
            device=device,
        )


if __name__ == "__main__":
    serve(CellJob, measure, sample_memory=False)
