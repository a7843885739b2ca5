"""Hugging Face to a quantized GGUF: this project's one pass against llama.cpp's two steps.

Both sides start from the same folder and must produce the same bytes. They run in turn, with the
same number of threads. The two steps are llama.cpp's converter to the source's own float type and
`llama_model_quantize`. This project's run also loads its file and generates a token; the table shows
it with and without that. Needs 8 GB of disk, or 20 GB with `--seven-b`.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arguments import gguf_level, model_folder, positive
from process_memory import tree_memory
from rich.console import Console
from rich.table import Table

from quant_assets.formats.gguf_levels import parse_level
from quant_assets.models.identity import sha256_of
from quant_assets.quantize.gguf.job import QuantizeGgufJob
from quant_assets.settings import PROJECT_ROOT, get_settings

if TYPE_CHECKING:
    import torch

REFERENCE = PROJECT_ROOT / "quant_assets_tests" / "workers" / "gguf" / "two_step.py"
SAMPLE_INTERVAL_S = 0.02
RUSAGE_BLOCK_BYTES = 512
SHARD_BYTES = 1_000_000_000
CONSOLE = Console(highlight=False, width=150)


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama with random weights."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


SHAPES = {
    "tiny": Shape(256, 512, 4, 4, 2, 2048),
    "llama-1.2b": Shape(2048, 8192, 16, 32, 8, 48_000),
    "llama-7b": Shape(4096, 11_008, 32, 32, 32, 32_000),
}


@dataclass(frozen=True)
class Measurement:
    """One run. Memory is the peak of the whole process tree, in bytes.

    `peak_own_bytes` excludes pages of mapped files, which the system can drop at any time:
    validation maps the finished file.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    peak_own_bytes: int
    written_bytes: int


def make_llama(folder: Path, shape: Shape, *, sparse: bool = False) -> Path:
    """Write a Llama checkpoint of random bfloat16 weights, shard by shard, and a tokenizer.

    With `sparse` the weights are holes in the files, which take no disk space: enough for a plan.
    """
    import torch

    folder.mkdir(parents=True)
    sizes = tensor_sizes(shape)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        n_bytes = 2 * math.prod(size)
        if shards[-1] and filled + n_bytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += n_bytes
    weight_map = {}
    generator = torch.Generator().manual_seed(1)
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard = {name: sizes[name] for name in names}
        if sparse:
            _save_sparse(shard, folder / file)
        else:
            _save_random(shard, folder / file, generator)
        weight_map.update(dict.fromkeys(names, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(_config(shape)))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    _train_tokenizer(folder / "tokenizer.model")
    return folder


def tensor_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama of this shape by its Hugging Face name."""
    head = shape.hidden // shape.heads
    sizes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocabulary, shape.hidden)
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, size in {
            "self_attn.q_proj": (shape.heads * head, shape.hidden),
            "self_attn.k_proj": (shape.kv_heads * head, shape.hidden),
            "self_attn.v_proj": (shape.kv_heads * head, shape.hidden),
            "self_attn.o_proj": (shape.hidden, shape.heads * head),
            "mlp.gate_proj": (shape.intermediate, shape.hidden),
            "mlp.up_proj": (shape.intermediate, shape.hidden),
            "mlp.down_proj": (shape.hidden, shape.intermediate),
            "input_layernorm": (shape.hidden,),
            "post_attention_layernorm": (shape.hidden,),
        }.items():
            sizes[f"{prefix}{name}.weight"] = size
    sizes["model.norm.weight"] = (shape.hidden,)
    sizes["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    return sizes


def _save_random(
    sizes: Mapping[str, tuple[int, ...]], path: Path, generator: "torch.Generator"
) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {
        name: torch.empty(size, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        for name, size in sizes.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def _save_sparse(sizes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in sizes.items():
        start, end = end, end + 2 * math.prod(size)
        entries[name] = {"dtype": "BF16", "shape": size, "data_offsets": (start, end)}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _train_tokenizer(path: Path) -> None:
    from pydoc_data.topics import topics

    import sentencepiece

    with path.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter("\n".join(topics.values()).splitlines()),
            model_writer=stream,
            vocab_size=2000,
            model_type="bpe",
            byte_fallback=True,
            minloglevel=2,
        )


def measure(command: Sequence[str | Path], standard_input: str = "") -> Measurement:
    """Run `command`; raises `RuntimeError` with the end of its stderr when it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        )
        peak = peak_own = 0
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak, peak_own
            while not ended.wait(SAMPLE_INTERVAL_S):
                memory, own = tree_memory(process.pid)
                peak, peak_own = max(peak, memory), max(peak_own, own)

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert process.stdin is not None
        process.stdin.write(standard_input.encode())
        process.stdin.close()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        ended.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(errors.read()[-2000:].decode(errors="replace"))
    cpu = usage.ru_utime + usage.ru_stime
    return Measurement(wall, cpu, peak, peak_own, usage.ru_oublock * RUSAGE_BLOCK_BYTES)


def one_pass(
    source: Path, level: str, output: Path, threads: int, *, validate: bool
) -> Measurement:
    """This project's worker."""
    job = QuantizeGgufJob(
        source=source,
        source_kind="hf",
        source_identity="benchmark",
        level=level,
        output=output,
        threads=threads,
        resume=False,
        validate_output=validate,
    )
    return measure(
        [sys.executable, "-m", "quant_assets.workers.gguf"], standard_input=job.model_dump_json()
    )


def two_steps(source: Path, level: str, output: Path, threads: int) -> Measurement:
    """llama.cpp's converter and quantizer, one after the other in one process."""
    task = {
        "source": str(source),
        "kind": "hf",
        "ftype": parse_level(level).ftype,
        "output": str(output),
        "threads": threads,
    }
    tasks = output.parent / "tasks.json"
    tasks.write_text(json.dumps([task]))
    try:
        return measure([sys.executable, REFERENCE, tasks])
    finally:
        shutil.rmtree(output.parent / "converted", ignore_errors=True)


def compare(name: str, source: Path, level: str, runs: int, threads: int, folder: Path) -> None:
    """Run both sides in turn, check that their files are equal, and print medians."""
    sides: dict[str, Callable[[Path], Measurement]] = {
        "convert + llama_model_quantize": lambda out: two_steps(source, level, out, threads),
        "one pass": lambda out: one_pass(source, level, out, threads, validate=False),
        "one pass, validated": lambda out: one_pass(source, level, out, threads, validate=True),
    }
    measured: dict[str, list[Measurement]] = {side: [] for side in sides}
    digests = set()
    for run in range(runs):
        for side, start in sides.items():
            output = folder / "output" / f"{name}-{level}.gguf"
            shutil.rmtree(output.parent, ignore_errors=True)
            output.parent.mkdir()
            measured[side].append(start(output))
            digests.add(sha256_of(output))
            CONSOLE.print(f"run {run + 1}, {side}: {measured[side][-1].wall_s:.1f} s", style="dim")
    if len(digests) != 1:
        raise RuntimeError("the two sides wrote different files")
    CONSOLE.print(_table(f"{name} to {level}, {threads} threads, median of {runs}", measured))


def _table(title: str, measured: dict[str, list[Measurement]]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for column in ("wall s", "CPU s", "peak RSS GB", "without files GB", "written GB"):
        table.add_column(column, justify="right")
    table.add_column("wall, memory, bytes relative to two steps", justify="right")
    reference: Measurement | None = None
    for side, runs in measured.items():
        median = Measurement(
            statistics.median(run.wall_s for run in runs),
            statistics.median(run.cpu_s for run in runs),
            int(statistics.median(run.peak_bytes for run in runs)),
            int(statistics.median(run.peak_own_bytes for run in runs)),
            int(statistics.median(run.written_bytes for run in runs)),
        )
        reference = reference or median
        table.add_row(
            side,
            f"{median.wall_s:.1f}",
            f"{median.cpu_s:.1f}",
            f"{median.peak_bytes / 1e9:.2f}",
            f"{median.peak_own_bytes / 1e9:.2f}",
            f"{median.written_bytes / 1e9:.2f}",
            f"{reference.wall_s / median.wall_s:.2f}x faster, "
            f"{median.peak_bytes / reference.peak_bytes:.2f}x, "
            f"{median.written_bytes / max(1, reference.written_bytes):.2f}x",
        )
    return table


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked; exits with status 2 for those that cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", type=gguf_level, default="Q4_K_M")
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=get_settings().cache / "bench-gguf")
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-1.2b")
    parser.add_argument(
        "--source",
        type=model_folder,
        help="another Hugging Face folder to convert, such as SmolLM2's",
    )
    parser.add_argument("--seven-b", action="store_true", help="only the 7B model, once")
    parsed = parser.parse_args(arguments)
    if parse_level(parsed.level).needs_imatrix:
        parser.error(
            f"--level: {parsed.level} needs an importance matrix, which this script does not compute"
        )
    if parsed.seven_b and parsed.source:
        parser.error("--seven-b runs the 7B model alone; leave --source out")
    return parsed


def main() -> None:
    """Run the comparison and print a table per model."""
    arguments = parse_arguments()
    level = arguments.level
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        if arguments.seven_b:
            source = make_llama(folder / "llama-7b", SHAPES["llama-7b"])
            output = folder / "output.gguf"
            run = one_pass(source, level, output, arguments.threads, validate=True)
            title = f"llama-7b to {level}, {arguments.threads} threads, one run"
            CONSOLE.print(_table(title, {"one pass, validated": [run]}))
            return
        sources = {arguments.shape: make_llama(folder / "model", SHAPES[arguments.shape])}
        if arguments.source:
            sources[arguments.source.name] = arguments.source
        for name, source in sources.items():
            compare(name, source, level, arguments.runs, arguments.threads, folder)


if __name__ == "__main__":
    main()
