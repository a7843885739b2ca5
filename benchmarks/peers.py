"""Compares this project's figures with llama.cpp's own tools: speed, perplexity, KL divergence.

The tools (llama-bench, llama-batched-bench, llama-perplexity) are built once from the sources
inside llama-cpp-python's source distribution, with the flags of the installed library. Both sides
run the same files, threads and sizes in alternating turns, and each turn is compared with its
neighbour, so that a slow minute of the machine affects both. The peer's consecutive turns are
compared with each other in the same way: their difference is the machine's noise. Run it on an idle
machine; on a shared one, compare the fastest runs, which other load disturbed least.
"""

import argparse
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from arguments import gguf_levels, level_file, positive, positive_list
from rich.console import Console
from rich.table import Table

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.artifact_finder import LocatedArtifact, artifact_finder
from quant_assets.bench.cell import run_cell
from quant_assets.bench.jobs import QualityJob, QualityMeasurement
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.statistics import Ratio, bootstrap_median_ratio
from quant_assets.bench.subject import Subject
from quant_assets.bench.variants import Variant
from quant_assets.models.config import load_models
from quant_assets.processes.supervisor import run_worker
from quant_assets.settings import PROJECT_ROOT, get_settings
from quant_assets.texts.evaluation import EvaluationText, evaluation_text

TOOLS = ("llama-bench", "llama-batched-bench", "llama-perplexity")
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
SPEED_LIMIT, PERPLEXITY_LIMIT, DIVERGENCE_LIMIT = 0.03, 0.001, 0.01
BASELINE = "F16"
CELLS_PER_SEQUENCE = 256  # llama.cpp rounds the context of a sequence up to a multiple of it
FINAL_PERPLEXITY = re.compile(r"Final estimate: PPL = ([0-9.]+)")
MEAN_PERPLEXITY = re.compile(r"Mean PPL\(Q\)\s*:\s*([0-9.]+)")
MEAN_DIVERGENCE = re.compile(r"Mean\s+KLD:\s*([0-9.]+)")


class Row(NamedTuple):
    """One figure of both sides, and the limit of their relative difference.

    For rates, `peer` and `ours` are medians, and `ratio` is the median over turns of ours over the
    peer's, with its 95% interval; `itself` is the same for the peer's turns over their successors.
    `fastest` is our fastest run over the peer's.
    """

    level: str
    figure: str
    peer: float
    ours: float
    limit: float
    ratio: Ratio | None = None
    itself: Ratio | None = None
    fastest: float | None = None

    @property
    def difference(self) -> float:
        """Ours over the peer's, minus one."""
        return (self.ours / self.peer if self.ratio is None else self.ratio.ratio) - 1

    @property
    def verdict(self) -> str:
        """Whether the difference is within its limit; `noise` where the interval leaves it open."""
        if abs(self.difference) <= self.limit:
            return "within"
        if self.ratio is None:
            return "OUTSIDE"
        reaches = self.ratio.low <= 1 + self.limit and self.ratio.high >= 1 - self.limit
        return "noise" if reaches else "OUTSIDE"


def build_tools(folder: Path) -> Path:
    """Build the peer's tools unless they exist; return the folder of the programs."""
    programs = folder / "build" / "bin"
    if all((programs / tool).exists() for tool in TOOLS):
        return programs
    if shutil.which("cmake") is None:
        sys.exit("cmake is not installed; building the tools needs it")
    release = version("llama-cpp-python")
    folder.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
         "--dest", folder, "--require-hashes",
         "--requirement", PROJECT_ROOT / "environments" / "llama-cpp.txt")  # fmt: skip
    with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    sources = folder / f"llama_cpp_python-{release}" / "vendor" / "llama.cpp"
    flags = NO_AMX if platform.machine() == "x86_64" else ""
    _run("cmake", "-S", sources, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release",
         "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
         "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_TOOLS=ON",
         f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}")  # fmt: skip
    _run("cmake", "--build", folder / "build", "--parallel", "--target", *TOOLS)
    return programs


def _run(*command: str | Path) -> str:
    """Run a program and return its output; exit with the end of it when the program fails."""
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}")
    return done.stdout


class Speed(NamedTuple):
    """Tokens per second of all sequences together, one value per run."""

    prefill: list[float]
    decode: list[float]


def peer_speed(programs: Path, model: Path, batch_size: int, settings: BenchSettings) -> Speed:
    """llama-bench for one sequence, llama-batched-bench for several."""
    prompt, generated = str(settings.prompt_tokens), str(settings.generated_tokens)
    threads, runs = str(settings.effective_threads), settings.runs
    if batch_size == 1:
        bench = (programs / "llama-bench", "-m", model, "-t", threads, "-r", str(runs), "-ngl", "0",
                 "-o", "json")  # fmt: skip
        prefill = _json_after(_run(*bench, "-p", prompt, "-n", "0"), "[")
        decode = _json_after(_run(*bench, "-p", "0", "-n", generated, "-d", prompt), "[")
        return Speed(prefill[0]["samples_ts"], decode[0]["samples_ts"])
    tokens = settings.prompt_tokens + settings.generated_tokens
    cells = -(-tokens // CELLS_PER_SEQUENCE) * CELLS_PER_SEQUENCE
    output = _run(
        programs / "llama-batched-bench", "-m", model, "-t", threads, "-ngl", "0",
        "-c", str(cells * batch_size), "-npp", prompt, "-ntg", generated,
        # Its first measurement is the warm-up.
        "-npl", ",".join([str(batch_size)] * (runs + 1)), "--output-format", "jsonl",
    )  # fmt: skip
    rows = [json.loads(line) for line in output.splitlines() if line.startswith('{"n_kv_max"')][1:]
    return Speed([row["speed_pp"] for row in rows], [row["speed_tg"] for row in rows])


def _json_after(text: str, start: str) -> list[dict[str, list[float]]]:
    rows: list[dict[str, list[float]]] = json.JSONDecoder().raw_decode(text[text.index(start) :])[0]
    return rows


def our_speed(model: Path, batch_size: int, settings: BenchSettings) -> Speed:
    """The project's own benchmark cell."""
    variant = Variant(name="peer", format="gguf", level="any")
    artifact = LocatedArtifact(model, "peer", model.stat().st_size)
    cell = run_cell(Subject("peer", variant, artifact, settings), batch_size)
    return Speed(
        [
            1000 * batch_size * settings.prompt_tokens / sample.time_to_first_token_ms
            for sample in cell.samples
        ],
        [
            1000 * batch_size * len(sample.token_ms) / sum(sample.token_ms)
            for sample in cell.samples
        ],
    )


def compare_speed(
    programs: Path, models: dict[str, Path], settings: BenchSettings, rounds: int
) -> list[Row]:
    """Prefill and decode rates of every model and batch size, over all rounds."""
    rows = []
    for level, model in models.items():
        for batch_size in settings.batch_sizes:
            peer: list[Speed] = []
            ours: list[Speed] = []
            for turn in range(rounds):
                for turns in (peer, ours) if turn % 2 else (ours, peer):
                    turns.append(
                        peer_speed(programs, model, batch_size, settings)
                        if turns is peer
                        else our_speed(model, batch_size, settings)
                    )
            for phase in Speed._fields:
                figure = f"{phase} tokens/s, batch {batch_size}"
                sides = ([getattr(turn, phase) for turn in turns] for turns in (peer, ours))
                rows.append(_speed_row(level, figure, *sides))
    return rows


def _speed_row(
    level: str, figure: str, peer_turns: list[list[float]], our_turns: list[list[float]]
) -> Row:
    peer, ours = ([statistics.median(turn) for turn in turns] for turns in (peer_turns, our_turns))
    return Row(
        level,
        figure,
        statistics.median(peer),
        statistics.median(ours),
        SPEED_LIMIT,
        ratio=_median_ratio(ours, peer),
        itself=_median_ratio(peer, peer[1:]),
        fastest=max(map(max, our_turns)) / max(map(max, peer_turns)),
    )


def _median_ratio(above: list[float], below: list[float]) -> Ratio:
    """The median of the ratios of neighbouring turns, with its interval."""
    return bootstrap_median_ratio([a / b for a, b in zip(above, below, strict=False)], [1.0])


def compare_quality(
    programs: Path,
    models: dict[str, Path],
    text: EvaluationText,
    windows: int,
    threads: int,
    folder: Path,
) -> list[Row]:
    """Perplexity of every model, and KL divergence of all but the baseline."""
    peer_base, our_base = folder / "peer.kld", folder / "ours.kld"
    common = ("-t", str(threads), "-ngl", "0")
    tool = programs / "llama-perplexity"
    base = _run(tool, "-m", models[BASELINE], *common, "-f", text.path, "--chunks", str(windows),
                "--kl-divergence-base", peer_base)  # fmt: skip
    ours = _our_quality(models[BASELINE], threads, text=text.path, save=our_base, windows=windows)
    rows = [
        Row(BASELINE, "perplexity", _figure(FINAL_PERPLEXITY, base), ours.perplexity,
            PERPLEXITY_LIMIT)
    ]  # fmt: skip
    for level, model in models.items():
        if level == BASELINE:
            continue
        peer = _run(tool, "-m", model, *common, "--kl-divergence-base", peer_base,
                    "--kl-divergence")  # fmt: skip
        ours = _our_quality(model, threads, baseline=our_base)
        assert ours.kl_divergence is not None
        rows += [
            Row(level, "perplexity", _figure(MEAN_PERPLEXITY, peer), ours.perplexity,
                PERPLEXITY_LIMIT),
            Row(level, "KL divergence", _figure(MEAN_DIVERGENCE, peer), ours.kl_divergence,
                DIVERGENCE_LIMIT),
        ]  # fmt: skip
    for path in (peer_base, our_base):
        path.unlink()
    return rows


def _our_quality(
    model: Path,
    threads: int,
    *,
    text: Path | None = None,
    save: Path | None = None,
    baseline: Path | None = None,
    windows: int | None = None,
) -> QualityMeasurement:
    job = QualityJob(
        model_path=str(model),
        format="gguf",
        text_path=str(text) if text else None,
        save_baseline_path=str(save) if save else None,
        baseline_path=str(baseline) if baseline else None,
        windows=windows,
        threads=threads,
        device="cpu",
    )
    return run_worker("llama_cpp.quality", job, QualityMeasurement)


def _figure(pattern: re.Pattern[str], output: str) -> float:
    found = pattern.search(output)
    if found is None:
        sys.exit(f"llama-perplexity did not print {pattern.pattern!r}:\n{output[-2000:]}")
    return float(found.group(1))


def find_models(levels: Sequence[str], given: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """The files to compare on: those given, or else the first model's artifacts."""
    if given:
        return dict(given)
    settings = get_settings()
    name = load_models(settings.models_yaml)[0].name
    find = artifact_finder(ArtifactStore(settings.artifacts), name)
    models = {}
    for level in levels:
        artifact = find(Variant(name=level, format="gguf", level=level))
        if artifact is None:
            sys.exit(f"{name} has no {level} artifact; run `make demo` first")
        models[level] = artifact.path
    return models


def print_table(rows: list[Row], title: str) -> None:
    """Print both sides and their difference."""
    table = Table(title=title)
    columns = ("level", "figure", "llama.cpp", "quant-assets", "difference", "95% interval",
               "limit", "", "peer against itself", "fastest runs")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("level", "figure") else "right")
    for row in rows:
        table.add_row(
            row.level,
            row.figure,
            f"{row.peer:,.6g}",
            f"{row.ours:,.6g}",
            f"{row.difference:+.2%}",
            _interval(row.ratio),
            f"{row.limit:.1%}",
            row.verdict,
            _interval(row.itself),
            "" if row.fastest is None else f"{row.fastest - 1:+.2%}",
        )
    Console(highlight=False, width=160).print(table)


def _interval(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.low - 1:+.1%} to {ratio.high - 1:+.1%}"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked; exits with status 2 for those that cannot be compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--levels", type=gguf_levels, default=("F16", "Q8_0", "Q4_K_M"),
        help="artifacts to compare; quality is always compared for F16 as well",
    )  # fmt: skip
    parser.add_argument(
        "--model", action="append", type=level_file, default=[], metavar="LEVEL=FILE",
        help="a file to compare instead of artifacts; repeat for more",
    )  # fmt: skip
    parser.add_argument("--batch-sizes", type=positive_list, default=(1, 4, 8))
    parser.add_argument("--rounds", type=positive, default=12, help="turns of each side, 2 or more")
    parser.add_argument("--runs", type=positive, default=2, help="measured runs per turn")
    parser.add_argument("--prompt-tokens", type=positive, default=128)
    parser.add_argument("--generated-tokens", type=positive, default=64)
    parser.add_argument("--windows", type=positive, default=30, help="windows to score")
    parser.add_argument("--only", choices=("speed", "quality"))
    parser.add_argument("--build", type=Path, default=get_settings().cache / "peers")
    parsed = parser.parse_args(arguments)
    if parsed.only != "quality" and parsed.rounds < 2:
        parser.error("--rounds: a turn is compared with the next, so at least 2 are needed")
    if parsed.only != "speed" and parsed.model and BASELINE not in dict(parsed.model):
        parser.error(f"--model: quality is compared with {BASELINE}; add --model {BASELINE}=FILE")
    return parsed


def main() -> None:
    """Build the tools, run both sides, print the tables; exit 1 when a limit is exceeded."""
    arguments = parse_arguments()
    settings = BenchSettings(
        batch_sizes=arguments.batch_sizes,
        warmups=1,
        runs=arguments.runs,
        prompt_tokens=arguments.prompt_tokens,
        generated_tokens=arguments.generated_tokens,
        device="cpu",
    )
    # Find missing files before spending minutes on the build.
    speed_models: dict[str, Path] = {}
    quality_models: dict[str, Path] = {}
    if arguments.only != "quality":
        speed_models = find_models(arguments.levels, arguments.model)
    if arguments.only != "speed":
        quality_models = find_models(
            tuple(dict.fromkeys((BASELINE, *arguments.levels))), arguments.model
        )
        text = evaluation_text("auto", get_settings().cache)
    programs = build_tools(arguments.build)
    rows = []
    if speed_models:
        rows = compare_speed(programs, speed_models, settings, arguments.rounds)
        print_table(rows, f"Speed, {settings.effective_threads} threads, CPU")
    if quality_models:
        quality = compare_quality(
            programs, quality_models, text, arguments.windows, settings.effective_threads,
            arguments.build,
        )  # fmt: skip
        print_table(quality, f"Quality, {arguments.windows} windows of 512 tokens of {text.name}")
        rows += quality
    sys.exit(1 if any(row.verdict == "OUTSIDE" for row in rows) else 0)


if __name__ == "__main__":
    main()
