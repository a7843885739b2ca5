"""An unwritable data root, full disks, and names that a file system rejects."""

import io
import os
import resource
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from quant_assets.artifacts.output_record import record_path
from quant_assets.errors import InputError, explained
from quant_assets.host import caches
from quant_assets.models.identity import HashCache, sha256_of
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.gguf.job import QuantizeGgufJob, quantize_gguf
from quant_assets.settings import PROJECT_ROOT
from quant_assets.texts.calibration import calibration_text
from quant_assets.texts.evaluation import evaluation_text
from quant_assets.workers.gguf.engine import quantize

NOBODY = 65534


def quant_assets(
    *arguments: str | Path,
    folder: Path,
    home: Path,
    file_limit: int | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run the command in `folder`; `file_limit` is the size in bytes that no file may exceed."""

    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from quant_assets.cli.app import main; main()",
            *map(str, arguments),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT_ROOT),
            "QUANT_ASSETS_HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "HOME": str(home),
        },
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
        preexec_fn=limit,
    )


@pytest.fixture
def homeless(tmp_path: Path) -> Path:
    """A data root that not even root can write: its parent is a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "home"


def test_quantize_and_imatrix_need_no_home(
    larger_bf16: Path, tmp_path: Path, homeless: Path
) -> None:
    done = quant_assets(
        "quantize", larger_bf16, "--level", "Q8_0", "--output-dir", "out",
        folder=tmp_path, home=homeless,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    output = tmp_path / "out" / f"{larger_bf16.stem}-Q8_0.gguf"
    assert output.exists() and record_path(output).exists()
    done = quant_assets(
        "imatrix", larger_bf16, "--chunks", "1", "--output-dir", "out",
        folder=tmp_path, home=Path("/proc/nowhere"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / f"{larger_bf16.stem}.imatrix.gguf").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_cache_is_not_needed(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words of text. " * 20)
    expected = evaluation_text("python-reference", tmp_path / "first").sha256
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            caches._temporary_folder.cache_clear()  # the one of this process may be root's
            found = evaluation_text("python-reference", home).sha256
            os._exit(0 if found == expected and not os.access(home, os.R_OK) else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_caches_are_optional(homeless: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words of text. " * 20)
    assert HashCache(homeless / "hashes.json").sha256(text) == sha256_of(text)
    calibration = calibration_text(str(text), homeless)
    assert calibration.path.read_text() == text.read_text()
    assert sha256_of(calibration.path) == calibration.sha256
    reference = evaluation_text("python-reference", homeless)
    assert sha256_of(reference.path) == reference.sha256


def test_a_damaged_cached_text_is_not_used(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words of text. " * 20)
    kept = calibration_text(str(text), tmp_path / "cache").path
    kept.write_text("Some")
    assert sha256_of(calibration_text(str(text), tmp_path / "cache").path) == sha256_of(text)


def test_a_full_disk_is_reported_and_resumed_from(
    larger_bf16: Path, tmp_path: Path, homeless: Path
) -> None:
    """A file size limit stands in for a full disk."""
    output = tmp_path / f"{larger_bf16.stem}-Q8_0.gguf"
    output.write_bytes(b"an earlier file")
    arguments = ("quantize", larger_bf16, "--level", "Q8_0", "--overwrite")
    full = quant_assets(*arguments, folder=tmp_path, home=homeless, file_limit=1_000_000)
    assert full.returncode == 4, full.stderr
    assert "The disk filled up" in full.stderr and "Free some space" in full.stderr
    assert "Traceback" not in full.stderr
    assert output.read_bytes() == b"an earlier file"
    done = quant_assets(*arguments, folder=tmp_path, home=homeless)
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 1_000_000


def test_standard_output_on_a_full_disk_is_reported(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from quant_assets.cli.app import main; main()", "types"],
            env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 4
    assert done.stderr.startswith("error: The disk filled up while writing the output.")
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "name",
    ["a b", "q'\"q", "m[1]*?", "two\nlines", "-dash", "\u00e9", "e\u0301", "%s{0}", "n" * 226],
)
def test_any_name_that_is_valid_text(larger_bf16: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / f"{name}.gguf"
    source.symlink_to(larger_bf16)
    job = job_of(source, tmp_path / "out" / f"{name}-Q8_0.gguf")
    made = quantize(job, EventChannel(io.StringIO()))
    assert sha256_of(job.output) == made.sha256
    assert quantize(job, EventChannel(io.StringIO())).reused


def test_a_name_that_is_too_long_is_rejected_before_the_work(
    larger_bf16: Path, tmp_path: Path
) -> None:
    job = job_of(larger_bf16, tmp_path / ("n" * 240 + "-Q8_0.gguf"))
    stream = io.StringIO()
    with pytest.raises(OSError, match="File name too long") as refusal:
        quantize(job, EventChannel(stream))
    error = explained(refusal.value)
    assert isinstance(error, InputError) and "is too long" in error.what
    assert '"quantize"' not in stream.getvalue(), "no layer was started"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_text_is_rejected(tmp_path: Path) -> None:
    name = os.fsdecode(b"m\xff.gguf")
    with pytest.raises(InputError, match="not UTF-8"):
        quantize_gguf(job_of(tmp_path / name, tmp_path / "out.gguf"))


def job_of(source: Path, output: Path) -> QuantizeGgufJob:
    return QuantizeGgufJob(
        source=source,
        source_kind="gguf",
        source_identity="the larger model",
        level="Q8_0",
        output=output,
        threads=1,
        validate_output=False,
        record=True,
        overwrite=False,
    )
