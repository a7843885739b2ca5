"""Worker: one benchmark cell of a checkpoint on torch, with the procedure of `llama_cpp.bench`."""

import time
from typing import Any

import torch

from quant_assets.bench.jobs import LOAD, RUNS, WARM_UP, CellJob, CellMeasurement, RunSample
from quant_assets.host.conditions import HostWatch, cpu_name
from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.workers.cell_runs import sampled_runs
from quant_assets.workers.torch.models import (
    library_versions,
    load_model,
    prepare_torch,
    report_vram,
    resolve_device,
)

_SEED = 1234


class _Cell:
    """A loaded model, ready for runs; `cache` is the KV cache of the last run."""

    def __init__(self, job: CellJob, model: Any, device: str) -> None:
        self._job = job
        self._model = model
        self._device = device
        self._n_vocab = int(model.config.vocab_size)
        self._generator = torch.Generator().manual_seed(_SEED)
        self.cache: Any = None

    def run(self) -> RunSample:
        """Prefill and decode once, starting with an empty cache."""
        self.cache = None
        prompts = self._random_tokens(self._job.prompt_tokens)
        steps = [self._random_tokens(1) for _ in range(self._job.generated_tokens)]
        start = time.perf_counter_ns()
        self._forward(prompts)
        first = last = time.perf_counter_ns()
        token_ms = []
        for tokens in steps:
            self._forward(tokens)
            now = time.perf_counter_ns()
            token_ms.append((now - last) / 1e6)
            last = now
        return RunSample(
            time_to_first_token_ms=(first - start) / 1e6,
            token_ms=token_ms,
            total_ms=(last - start) / 1e6,
        )

    def cache_bytes(self) -> int:
        """Bytes of the keys and values of the last run."""
        tensors = [tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in tensors)

    def cache_arithmetic(self) -> int:
        """Expected bytes: layers x 2 x batch x heads x tokens x head size x bytes per activation."""
        config, job = self._model.config, self._job
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        tokens = job.batch_size * (job.prompt_tokens + job.generated_tokens)
        return int(
            2 * config.num_hidden_layers * tokens * heads * head * self._model.dtype.itemsize
        )

    def _random_tokens(self, count: int) -> torch.Tensor:
        shape = (self._job.batch_size, count)
        tokens = torch.randint(self._n_vocab, shape, generator=self._generator)
        return tokens.to(self._device)

    def _forward(self, tokens: torch.Tensor) -> None:
        output = self._model(
            input_ids=tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.cache = output.past_key_values
        if self._device == "cuda":
            torch.cuda.synchronize()


def measure(job: CellJob, channel: EventChannel) -> CellMeasurement:
    """Load the model and run the cell."""
    watch = HostWatch()
    prepare_torch(job.threads)
    device = resolve_device(job.device)
    report_vram(channel, device)
    channel.plan_steps({LOAD: 20, WARM_UP: 20, RUNS: 60})
    channel.progress(LOAD, 0, 1, "models")
    started = time.perf_counter()
    model = load_model(job.model_path, job.format, device)
    load_time_ms = (time.perf_counter() - started) * 1000
    channel.progress(LOAD, 1, 1, "models")
    cell = _Cell(job, model, device)
    samples = sampled_runs(cell.run, job, channel)
    on_gpu = device == "cuda"
    memory = channel.memory_usage()
    return CellMeasurement(
        load_time_ms=load_time_ms,
        samples=samples,
        peak_rss_bytes=memory.peak_rss_bytes,
        peak_own_bytes=memory.peak_own_bytes,
        peak_vram_bytes=memory.peak_vram_bytes,
        kv_cache_bytes=cell.cache_bytes(),
        kv_cache_bytes_expected=cell.cache_arithmetic(),
        conditions=watch.finish(),
        library_versions=library_versions(),
        build_flags=torch.__config__.show(),
        cpu_name=cpu_name(),
        gpu_name=torch.cuda.get_device_name() if on_gpu else None,
        device=device,
    )


if __name__ == "__main__":
    serve(CellJob, measure, sample_memory=False)
