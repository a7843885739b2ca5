"""The Python environments of workers: their interpreters and their environment variables."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from quant_assets.errors import EnvironmentNotReady
from quant_assets.redaction import is_secret_name
from quant_assets.settings import PROJECT_ROOT

EnvironmentName = Literal["main", "gptq", "awq"]

_PASSED_NAMES = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "TEMP",
        "TMP",
        "CC",
        "CXX",
        "CFLAGS",
        "CXXFLAGS",
        "CPPFLAGS",
        "LDFLAGS",
        "SDKROOT",
        "MACOSX_DEPLOYMENT_TARGET",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "GLIBC_TUNABLES",
        "TOKENIZERS_PARALLELISM",
        "HF_HOME",
        "HUGGINGFACE_HUB_CACHE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ]
)
_PASSED_PREFIXES = re.compile(
    # The locale and this project; Python; Dagster Pipes
    "LC_|XDG_|QUANT_ASSETS_|PYTHON|DAGSTER_PIPES_"
    # Threads and their libraries
    "|OMP_|GOMP_|KMP_|MKL_|OPENBLAS_|BLIS_|VECLIB_|NUMEXPR_|MALLOC_"
    # GPUs and their compilers
    "|CUDA|NVIDIA_|NCCL_|HIP|ROCR_|ROCM_|HSA_|GPU_|DYLD_|TRITON_|TORCH|PYTORCH_"
    # The engines
    "|HF_HUB_|HF_DATASETS_|TRANSFORMERS_|SAFETENSORS_|GPTQMODEL_|GGML_|LLAMA_"
)


def interpreter(environment: EnvironmentName) -> Path:
    """The Python interpreter of `environment`; `main` is this process's own.

    Raises `EnvironmentNotReady` when a worker environment is not installed.
    """
    if environment == "main":
        return Path(sys.executable)
    python = PROJECT_ROOT / ".venvs" / environment / "bin" / "python"
    if not python.exists():
        raise EnvironmentNotReady(
            f"The worker environment {environment!r} does not exist.",
            f"There is no interpreter at {python}.",
            "Run `make setup-groupwise` in the project's folder, or "
            f"`python3 environments/bootstrap.py {environment}`.",
        )
    return python


def worker_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environment` that a worker needs, without secrets.

    Workers read local files only and need no token. They run third-party code on untrusted files;
    a secret that they do not have cannot leak.
    """
    passed = {
        name: value
        for name, value in environment.items()
        if (name.upper() in _PASSED_NAMES or _PASSED_PREFIXES.match(name))
        and not is_secret_name(name)
    }
    # The project is not installed in worker environments; they import it from its source.
    passed["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(PROJECT_ROOT), environment.get("PYTHONPATH", "")) if part
    )
    return passed
