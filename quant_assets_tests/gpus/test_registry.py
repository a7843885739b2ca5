"""The shipped GPU registry: plausible, self-consistent and unambiguous."""

from pathlib import Path

import pytest
import yaml

from quant_assets.errors import InputError
from quant_assets.gpus.registry import Gpu, GpuRegistry, load_registry, name_key
from quant_assets.settings import get_settings

REGISTRY = load_registry()
WITH_MEMORY_CLOCK = [
    gpu
    for gpu in REGISTRY.all
    if gpu.memory_bandwidth_gb_s and gpu.memory_bus_width_bit and gpu.memory_data_rate_gbit_s
]
WITH_CLOCK = [
    gpu
    for gpu in REGISTRY.all
    if gpu.fp32_vector_tflops and gpu.multiprocessors and gpu.boost_clock_mhz
]


def entry(**changes: object) -> dict[str, object]:
    return {
        "canonical_name": "Test 1",
        "vendor": "NVIDIA",
        "family": "Test 1",
        "architecture": "Ada",
        "segment": "consumer",
        "form_factor": "pcie",
        "release_year": 2023,
        "vram_gb": 8,
        "memory_type": "GDDR6",
        "compute_capability": "8.9",
        "source": "A datasheet",
        **changes,
    }


def test_the_registry_is_broad() -> None:
    assert len(REGISTRY.all) >= 200
    assert {gpu.vendor for gpu in REGISTRY.all} == {"NVIDIA", "AMD", "Intel", "Apple"}
    assert len(WITH_MEMORY_CLOCK) >= 180


@pytest.mark.parametrize("gpu", WITH_MEMORY_CLOCK, ids=lambda gpu: gpu.canonical_name)
def test_bandwidth_is_bus_width_times_data_rate(gpu: Gpu) -> None:
    assert gpu.memory_bus_width_bit and gpu.memory_data_rate_gbit_s
    expected = gpu.memory_bus_width_bit * gpu.memory_data_rate_gbit_s / 8
    assert gpu.memory_bandwidth_gb_s == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("gpu", WITH_CLOCK, ids=lambda gpu: gpu.canonical_name)
def test_vector_throughput_is_lanes_times_clock(gpu: Gpu) -> None:
    assert gpu.multiprocessors and gpu.boost_clock_mhz
    operations = gpu.multiprocessors * gpu.fp32_lanes * 2 * gpu.boost_clock_mhz * 1e6
    assert gpu.fp32_vector_tflops == pytest.approx(operations / 1e12, rel=0.02)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("GeForce RTX 3090", 35.6),
        ("GeForce RTX 4090", 82.6),
        ("A100 PCIe 80GB", 19.5),
        ("H200 SXM 141GB", 66.9),
        ("Tesla P40", 11.8),
        ("Tesla P100 PCIe 16GB", 9.3),
        ("Tesla K80", 8.73),
        ("Radeon RX 7900 XTX", 30.7),
        ("Instinct MI210", 22.6),
        ("Arc Pro B60", 12.3),
        ("M1 Max 64GB", 10.4),
        ("M2 Ultra 192GB", 27.2),
    ],
)
def test_vector_throughput_is_the_published_figure(name: str, tflops: float) -> None:
    assert REGISTRY.get(name).fp32_vector_tflops == pytest.approx(tflops, rel=0.01)


def test_every_gpu_has_a_vector_throughput() -> None:
    # Gaudi's vector units (TPC) have no published FP32 rate.
    without = [gpu.canonical_name for gpu in REGISTRY.all if gpu.fp32_vector_tflops is None]
    assert without == ["Gaudi 2", "Gaudi 3 OAM", "Gaudi 3 PCIe"]
    assert len(WITH_CLOCK) >= 235


def test_matrix_throughput_is_missing_only_where_it_is_not_published() -> None:
    # RTX 5090 D: tensor rate reduced by an undisclosed factor; Gaudi: BF16 and FP8 only.
    without = {gpu.family for gpu in REGISTRY.all if gpu.fp16_dense_tflops is None}
    assert without == {"GeForce RTX 5090 D", "GeForce RTX 5090 D V2", "Gaudi 2", "Gaudi 3"}


# FP16 on matrix units (else packed, else FP32) and INT8 (else DP4A; None: neither), as multiples of
# FP32 outside them. Several: full and halved rates of cards with one architecture.
RATIOS: dict[str, tuple[set[float], set[float] | None]] = {
    "Kepler": ({1}, None),
    "Maxwell": ({1}, None),
    "Pascal 6.0": ({2}, None),
    "Pascal 6.1": ({1}, {4}),
    "Volta": ({8}, None),
    "Turing": ({2, 4, 8}, {4, 16}),
    "Ampere 8.0": ({16}, {32}),
    "Ampere 8.6": ({2, 4}, {4, 8}),
    "Ada Lovelace": ({2, 4}, {4, 8}),
    "Blackwell 12.0": ({2, 4}, {8}),
    "GCN 4": ({1}, None),
    "GCN 5": ({2}, None),
    "GCN 5.1": ({2}, {4}),
    "CDNA": ({8}, {8}),
    "CDNA 2": ({8}, {8}),
    "CDNA 3": ({16}, {32}),
    "RDNA": ({2}, {4}),
    "RDNA 2": ({2}, {4}),
    "RDNA 3": ({4}, {4}),
    "RDNA 4": ({8}, {16}),
    "Xe2-HPG": ({8}, {16}),
    "Xe-HPC": ({16}, {32}),
    "Apple M1": ({1}, None),
    "Apple M4": ({1}, None),
    "Apple M5": ({4}, {7.2}),
    "Ampere (Tegra)": ({8}, {16}),
    "Blackwell (Tegra)": ({32}, {64}),
    "RDNA 3.5": ({4}, {4}),
}


@pytest.mark.parametrize("architecture", RATIOS)
def test_matrix_throughput_is_a_multiple_of_vector_throughput(architecture: str) -> None:
    fp16_ratios, int8_ratios = RATIOS[architecture]
    found = [
        gpu
        for gpu in REGISTRY.all
        if architecture in (gpu.architecture, f"{gpu.architecture} {gpu.compute_capability}")
        and gpu.fp16_dense_tflops
    ]
    assert found
    for gpu in found:
        assert gpu.fp16_dense_tflops and gpu.fp32_vector_tflops
        ratio = gpu.fp16_dense_tflops / gpu.fp32_vector_tflops
        assert min(abs(ratio / r - 1) for r in fp16_ratios) < 0.08, gpu.canonical_name
        if gpu.int8_dense_tops is not None:
            assert int8_ratios is not None, gpu.canonical_name
            ratio = gpu.int8_dense_tops / gpu.fp32_vector_tflops
            assert min(abs(ratio / r - 1) for r in int8_ratios) < 0.08, gpu.canonical_name


@pytest.mark.parametrize("gpu", REGISTRY.all, ids=lambda gpu: gpu.canonical_name)
def test_figures_are_plausible(gpu: Gpu) -> None:
    if gpu.memory_bandwidth_gb_s is not None:
        # From LPDDR to HBM3e a card reads its whole memory 0.9 to 80 times a second.
        assert 0.9 < gpu.memory_bandwidth_gb_s / gpu.vram_gb < 80
    if gpu.fp16_dense_tflops is not None and gpu.int8_dense_tops is not None:
        assert 0.95 < gpu.int8_dense_tops / gpu.fp16_dense_tflops < 4.1
    if gpu.fp16_dense_tflops is not None and gpu.tdp_w is not None:
        assert gpu.fp16_dense_tflops / gpu.tdp_w < 3
    memory = [word for word in gpu.canonical_name.split() if word.endswith("GB")]
    if memory:
        assert memory == [f"{gpu.vram_gb:g}GB"]
    assert gpu.canonical_name.startswith(gpu.family)


@pytest.mark.parametrize(
    ("name", "device_bytes"),
    [
        ("L4", 23034 * 2**20),
        ("Tesla T4", 15843721216),
        ("H200 SXM 141GB", 143771 * 2**20),
        ("A16", 15356 * 2**20),
        ("Tesla K80", 11441 * 2**20),
        ("Instinct MI250X", 65520 * 2**20),
        ("Radeon RX 7900 XTX", 24560 * 2**20),
        ("Tesla M10", 8 * 2**30),
        ("Arc Pro B60 Dual 48GB", 24 * 2**30),
        ("M2 Ultra 192GB", 192 * 2**30),
    ],
)
def test_device_memory_is_reported_or_as_sold(name: str, device_bytes: int) -> None:
    assert REGISTRY.get(name).device_memory_bytes == device_bytes


def test_reported_memory_is_little_less_than_sold() -> None:
    reported = [gpu for gpu in REGISTRY.all if gpu.reported_memory_bytes]
    assert len(reported) >= 100
    for gpu in reported:
        # ECC in GDDR takes one sixteenth; the driver some more.
        sold = gpu.vram_gb / gpu.devices * 2**30
        assert 0.91 <= gpu.device_memory_bytes / sold <= 1, gpu.canonical_name
        assert gpu.form_factor != "soc", gpu.canonical_name


def test_cores_of_one_apple_generation_are_equally_fast() -> None:
    # Their clocks differ by up to 8 %.
    for architecture in (f"Apple M{generation}" for generation in range(1, 6)):
        per_core = [
            gpu.fp32_vector_tflops / gpu.multiprocessors
            for gpu in REGISTRY.all
            if gpu.architecture == architecture and gpu.fp32_vector_tflops and gpu.multiprocessors
        ]
        assert len(per_core) >= 6
        assert max(per_core) < 1.08 * min(per_core), architecture


def test_laptop_gpus_are_not_sold_alone() -> None:
    laptop = {gpu.canonical_name for gpu in REGISTRY.all if gpu.form_factor == "laptop"}
    assert {"GeForce RTX 4060 Laptop GPU", "GeForce RTX 2050", "RTX A5000 Laptop GPU"} <= laptop
    assert {gpu.canonical_name for gpu in REGISTRY.all} - laptop == set(REGISTRY.sold_alone.by_name)
    # GeForce: a smaller chip than the desktop card of that name, with at most a higher clock.
    for gpu in REGISTRY.all:
        if gpu.segment != "consumer":
            continue
        desktop = REGISTRY.find(gpu.family.removesuffix(" Laptop GPU"))
        if gpu.canonical_name in laptop and desktop is not None and desktop != gpu:
            assert gpu.fp32_vector_tflops and desktop.fp32_vector_tflops
            assert gpu.fp32_vector_tflops < 1.05 * desktop.fp32_vector_tflops, gpu.canonical_name


def test_architecture_decides_the_compute_capability() -> None:
    capabilities = {
        "Pascal": {"6.0", "6.1"},
        "Volta": {"7.0"},
        "Turing": {"7.5"},
        "Ampere": {"8.0", "8.6"},
        "Ada Lovelace": {"8.9"},
        "Hopper": {"9.0"},
        "Blackwell": {"10.0", "12.0", "12.1"},
    }
    for architecture, expected in capabilities.items():
        found = {gpu.compute_capability for gpu in REGISTRY.all if gpu.architecture == architecture}
        assert found == expected


def test_multi_instance_only_where_it_exists() -> None:
    # A30, A100, A800; Hopper and data-centre Blackwell; RTX PRO 4500 to 6000 Blackwell.
    for gpu in REGISTRY.all:
        ampere = gpu.compute_capability == "8.0"
        data_centre = gpu.compute_capability in ("9.0", "10.0", "10.3")
        professional = gpu.family in {f"RTX PRO {n} Blackwell" for n in (4500, 5000, 6000)}
        assert gpu.mig_capable == (ampere or data_centre or professional), gpu.canonical_name


def test_no_name_means_two_gpus() -> None:
    owners: dict[str, set[str]] = {}
    for gpu in REGISTRY.all:
        for name in gpu.names:
            owners.setdefault(name_key(name), set()).add(gpu.canonical_name)
    assert {key: names for key, names in owners.items() if len(names) > 1} == {}


def test_a_family_name_means_its_own_card_or_all_of_them() -> None:
    for key, variants in REGISTRY.families_by_key.items():
        if (gpu := REGISTRY.by_key.get(key)) is not None:
            assert gpu in variants


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("NVIDIA RTX A2000 12Gb", "RTX A2000 12GB"),
        ("nvidia h100-80gb pcie", "H100 PCIe 80GB"),
        ("Tesla P40 24G", "Tesla P40"),
        ("RTX 6000 Ada", "RTX 6000 Ada"),
        ("Quadro RTX 6000", "Quadro RTX 6000"),
        ("RTX A6000", "RTX A6000"),
        ("GeForce RTX4090", "GeForce RTX 4090"),
        ("rtx 4090 48GB", "GeForce RTX 4090 48GB"),
        ("AMD Instinct MI300X", "Instinct MI300X"),
        ("Apple M2 Ultra 192 GB", "M2 Ultra 192GB"),
        ("RTX PRO 6000 Blackwell", "RTX PRO 6000 Blackwell Workstation"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "GeForce RTX 4060 Laptop GPU"),
        ("NVIDIA GeForce RTX 4060", "GeForce RTX 4060"),
        ("RTX 3080 10GB", "GeForce RTX 3080 10GB"),
        ("RTX 3080 Laptop GPU 16GB", "GeForce RTX 3080 Laptop GPU 16GB"),
        ("NVIDIA RTX A5000 Laptop GPU", "RTX A5000 Laptop GPU"),
        ("NVIDIA RTX A5000", "RTX A5000"),
        ("GeForce GTX 1070 with Max-Q Design", "GeForce GTX 1070 with Max-Q Design"),
        ("M1 Max 64GB", "M1 Max 64GB"),
        ("M1 Max 64GB 24-core GPU", "M1 Max 24-core GPU 64GB"),
        ("Radeon 8060S 128GB", "Ryzen AI Max+ 395 (Radeon 8060S) 128GB"),
    ],
)
def test_lookup(text: str, canonical: str) -> None:
    assert REGISTRY.get(text).canonical_name == canonical


@pytest.mark.parametrize("text", ["A100", "RTX A2000", "H100", "RTX 3060", "V100 16GB", "RTX 6000"])
def test_an_ambiguous_name_is_not_guessed(text: str) -> None:
    assert REGISTRY.find(text) is None


def test_an_ambiguous_name_lists_its_variants() -> None:
    with pytest.raises(InputError, match="RTX A2000 6GB, RTX A2000 12GB"):
        REGISTRY.get("RTX A2000")
    assert [gpu.vram_gb for gpu in REGISTRY.variants("RTX A2000")] == [6, 12]


def test_an_unknown_name_suggests_the_nearest_ones() -> None:
    with pytest.raises(InputError, match="GeForce RTX 4090"):
        REGISTRY.get("RTX 4099")
    with pytest.raises(InputError):
        REGISTRY.get("")


def test_one_name_for_two_cards_is_refused() -> None:
    second = entry(canonical_name="Test 2", family="Test 2", aliases=["TEST-1 8 GB"])
    with pytest.raises(ValueError, match="names both"):
        GpuRegistry.model_validate({"all": [entry(), second]})


@pytest.mark.parametrize(
    "changes",
    [
        {"vram_gb": 0},
        {"compute_capability": None},
        {"vendor": "AMD"},
        {"tdp_w": 1},
        {"release_year": 1999},
        {"memory_bandwith_gb_s": 1000},
        {"reported_memory_bytes": 8 * 2**30 + 1},
    ],
    ids=str,
)
def test_an_invalid_entry_is_refused_with_file_and_position(
    changes: dict[str, object], tmp_path: Path
) -> None:
    file = tmp_path / "gpus.yaml"
    file.write_text(yaml.safe_dump([entry(canonical_name="Test 0", family="Test 0"), entry()]))
    assert len(load_registry(file).all) == 2
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump([entry(**changes)]))
    with pytest.raises(InputError, match=r"wrong\.yaml") as caught:
        load_registry(file)
    assert "all.0" in caught.value.why


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        load_registry(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("- {canonical_name: [")
    with pytest.raises(InputError, match="broken"):
        load_registry(broken)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "gpus.yaml"
    file.write_text(yaml.safe_dump([entry()]))
    assert load_registry(file) is load_registry(file)
    replacement = tmp_path / "new.yaml"
    replacement.write_text(yaml.safe_dump([entry(canonical_name="Test 9", family="Test 9")]))
    replacement.replace(file)
    assert list(load_registry(file).by_name) == ["Test 9"]


def test_the_file_is_plain_yaml_without_nulls() -> None:
    content = yaml.safe_load((get_settings().data / "gpus.yaml").read_text(encoding="utf-8"))
    assert all(value is not None for fields in content for value in fields.values())


def test_a_driver_name_means_one_card() -> None:
    gpus = [
        Gpu.model_validate(entry(canonical_name=name, family="Test", driver_names=["NVIDIA Test"]))
        for name in ("Test PCIe", "Test SXM")
    ]
    with pytest.raises(ValueError, match="'NVIDIA Test' is the driver's name of two GPUs"):
        GpuRegistry(all=tuple(gpus))
    plain = gpus[1].model_copy(update={"driver_names": ()})
    registry = GpuRegistry(all=(gpus[0], plain))
    assert registry.reported("NVIDIA Test") == gpus[0]
    assert registry.reported("Test SXM") == plain
    assert registry.reported("Test") is None
