"""The probe of the installed llama.cpp."""

import llama_cpp
import pytest

from quant_assets.bench.probes import probe_llama_cpp
from quant_assets.errors import EnvironmentNotReady


def test_it_reports_device_build_and_versions():
    found = probe_llama_cpp()
    assert found.device == ("cuda" if llama_cpp.llama_supports_gpu_offload() else "cpu")
    assert found.build_flags == llama_cpp.llama_print_system_info().decode().strip()
    assert found.library_versions["llama-cpp-python"] == llama_cpp.__version__
    assert found.library_versions["llama-cpp-python"] in found.text


@pytest.mark.skipif(llama_cpp.llama_supports_gpu_offload(), reason="this build can use a GPU")
def test_a_build_without_a_gpu_backend_is_refused():
    with pytest.raises(EnvironmentNotReady, match="cannot use a GPU"):
        probe_llama_cpp("cuda")
