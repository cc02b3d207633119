"""What to expect: the formula by hand, the contract of ``nbutils predict``, a fit that finds what made its rows, errors that must not grow."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import copy_of_data
from nbutils import calibrate, frames_predict, limits, predict, registry
from nbutils.errors import DataError
from nbutils.specs_calibration import GROUPS
from nbutils.tensors import variant

Run = Callable[..., tuple[int, str, str]]
NUMBERS = {
    "bandwidth_gb_per_s": "500",
    "family": "nvidia-discrete",
    "backend": "CUDA",
    "engine": "llama.cpp",
    "phase": "decode",
    "n_layers": "32",
    "weight_gb_read": "4.6",
    "kv_bytes_per_token": "131072",
    "moe": "0",
    "depth": "1000",
}
NAMED = {"device": "rtx-3090", "phase": "decode", "model": "llama-3.1-8b", "format": "Q4_K_M"}


def answers(*rows: dict[str, str]) -> list[dict[str, Any]]:
    return list(frames_predict.predict_cases(pd.DataFrame(list(rows)).fillna("")).to_dict("records"))


# ── the formula ───────────────────────────────────────────────────────────────────────────────────


def test_a_rate_is_one_over_three_times_by_hand() -> None:
    """500 GB/s is no machine's bandwidth among the rows, so the constants are the group's own."""
    group, factor = registry.load_calibration().decode["nvidia-discrete"], registry.load_calibration().formats["8"]
    weights = 4.6 / (group.share * factor * 500)
    layers = 32 * group.layer_us / 1e6
    cache = 1000 * 131072 / 1e9 / (group.kv_share * 500)
    (row,) = answers(NUMBERS | {"format": "Q8_0"})
    assert row["expected_tok_per_s"] == pytest.approx(1 / (weights + layers + cache))
    assert row["ceiling_tok_per_s"] == pytest.approx(500 / (4.6 + 0.131072))


@pytest.mark.parametrize("change", [{"moe": "1"}, {"depth": "30000"}, {"n_layers": "64"}, {"weight_gb_read": "9"}, {"engine": "ollama"}])
def test_experts_depth_layers_and_bytes_cost_time(change: dict[str, str]) -> None:
    plain, more = answers(NUMBERS, NUMBERS | change)
    assert more["expected_tok_per_s"] < plain["expected_tok_per_s"]


def test_registry_rows_read_what_limits_read() -> None:
    """Windows included: at 20,000 tokens gpt-oss keeps 128 tokens in every second layer."""
    model = registry.load_model("gpt-oss-120b")
    step = limits.decode_step_bytes(variant(model, registry.load_format("MXFP4_MOE")), depth=20_000)
    (row,) = answers(NAMED | {"device": "dgx-spark", "model": "gpt-oss-120b", "format": "MXFP4_MOE", "depth": "20000"})
    assert row["ceiling_tok_per_s"] == pytest.approx(273e9 / step)


def test_a_prompt_is_read_in_three_times_by_hand() -> None:
    """The peak of the family that goes with a bandwidth, at what such a chip reaches of it; eight billion weights, no token before them."""
    found = registry.load_calibration()
    (row,) = answers(NUMBERS | {"phase": "prefill", "active_params_b": "8", "depth": "0"})
    per_byte = float(re.findall(r"(\d+) FLOP per byte", row["basis"])[0])
    group = found.prefill["nvidia-discrete"]
    reached = group.share * (per_byte / 100) ** -found.prefill_slope * per_byte * 500e9
    seconds = 2 * 8e9 / reached + 32 * group.layer_us / 1e6 / 512
    assert row["expected_tok_per_s"] == pytest.approx(1 / seconds, rel=0.01)


def test_more_arithmetic_on_the_same_memory_reads_faster_but_not_in_proportion() -> None:
    found = registry.load_calibration()
    peaks = np.array([50e12, 100e12])
    poor, rich = peaks * predict.richness(found, peaks, np.full(2, 500e9))
    assert 1.1 < rich / poor < 1.9


@pytest.mark.parametrize(
    ("name", "year"),
    [
        ("Apple M4 Pro", 2024.4),
        ("Apple MacBook Pro, M5 Max (40-core GPU)", 2025.8),
        ("NVIDIA GeForce GTX 1660 Ti", 2018.8),
        ("Tesla P40", 2016.4),
        ("NVIDIA RTX 6000 Ada", 2022.8),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 2025.1),
        ("NVIDIA A100 80GB SXM", 2020.7),
        ("NVIDIA RTX Spark N1X", 2025.8),
        ("AMD Radeon RX 7900 XTX", 2022.8),
        ("AMD Ryzen AI Max+ 395 (Strix Halo)", 2025.2),
        ("Intel Arc B580", 2024.7),
        ("some GPU", None),
    ],
)
def test_names_say_how_old_a_chip_is(name: str, year: float | None) -> None:
    assert predict.chip_year(name) == year


def test_registry_names_all_say_how_old_they_are() -> None:
    for device_id in registry.device_ids():
        device = registry.load_device(device_id)
        assert predict.chip_year(" ".join((device.name, *device.chip_names))), device_id


def test_a_layer_costs_a_new_chip_less_and_an_old_one_reads_less() -> None:
    """Cards that nobody measured, told apart by their names alone."""
    old, middle, new = answers(*(NUMBERS | {"device": name} for name in ("NVIDIA GTX 1080 Ti", "NVIDIA RTX 3070", "NVIDIA RTX 5080")))
    assert old["expected_tok_per_s"] < 0.7 * middle["expected_tok_per_s"]
    assert middle["expected_tok_per_s"] < new["expected_tok_per_s"]
    assert "a chip of 2025" in new["basis"]


def test_few_bits_cost_a_processor_more_than_a_card() -> None:
    """Arithmetic binds: an eighth of the bytes of 16 bits is not read in an eighth of the time."""
    share = {
        family: [
            row["expected_tok_per_s"] / row["ceiling_tok_per_s"]
            for row in answers(*(NUMBERS | {"family": family, "backend": "", "format": f} for f in ("Q8_0", "Q3_K_M")))
        ]
        for family in ("cpu", "nvidia-discrete")
    }
    assert share["cpu"][1] / share["cpu"][0] < 0.65 < share["nvidia-discrete"][1] / share["nvidia-discrete"][0]


def test_prefill_slows_down_with_depth_and_a_mixture_reads_faster_than_a_dense_model_of_its_size() -> None:
    rows = answers(
        *(NAMED | {"phase": "prefill", "model": m, "depth": d} for m, d in (("qwen3-32b", "0"), ("qwen3-32b", "30000"), ("qwen3-30b-a3b", "0")))
    )
    shallow, deep, mixture = (row["expected_tok_per_s"] for row in rows)
    assert deep < shallow < mixture
    assert all(row["expected_tok_per_s"] <= row["ceiling_tok_per_s"] for row in rows)


def test_lines_add_up_to_the_expected_rate() -> None:
    lines = {line.what: line.value for line in frames_predict.expected_lines("dgx-spark", "qwen3.6-35b-a3b", "Q4_K_M", depth=4096)}
    total_ms = sum(float(lines[name] or 0) for name in ("reading weights", "layers take", "reading K and V"))
    assert lines["expected"] == pytest.approx(1e3 / total_ms)
    assert "this one among them" in str(lines["basis"])


def test_a_machine_that_nobody_measured_has_a_wider_range() -> None:
    def width(family: str, gb_per_s: str) -> float:
        (row,) = answers(NUMBERS | {"family": family, "bandwidth_gb_per_s": gb_per_s, "backend": "", "weight_gb_read": "40"})
        return float(row["high_tok_per_s"] / row["low_tok_per_s"])

    measured = frames_predict.expected("dgx-spark", "llama-3.3-70b", "Q4_K_M")
    assert measured.high_tok_per_s / measured.low_tok_per_s < width("nvidia-unified", "300") < width("nvidia-hbm", "3000")


@pytest.mark.parametrize(
    ("family", "backend", "engine", "gb_per_s", "group"),
    [
        ("nvidia-discrete", "cuda", "vllm", 1008, "nvidia-discrete"),
        ("nvidia-discrete", "cuda", "vllm", 3350, "nvidia-hbm"),
        ("nvidia-unified", "cuda", "vllm", 273, "nvidia-unified-vllm"),
        ("apple", "metal", "ollama", 120, "apple"),
        ("amd-unified", "vulkan", "llama.cpp", 256, "amd-unified-vulkan"),
        ("amd-unified", "cpu", "llama.cpp", 256, "cpu"),
        ("amd-discrete", "rocm", "ollama", 960, "amd-discrete-rocm"),
        ("amd-discrete", "vulkan", "llama.cpp", 960, "amd-discrete-vulkan"),
        ("intel", "sycl", "llama.cpp", 456, "intel"),
    ],
)
def test_every_machine_and_engine_has_a_group(family: str, backend: str, engine: str, gb_per_s: float, group: str) -> None:
    assert predict.group_of(family, backend, engine, gb_per_s) == group


@pytest.mark.parametrize(
    ("kv", "layers", "moe", "parameters_b", "hybrid"),
    [
        (65536, 64, False, 27, True),  # Qwen3.6 27B: 16 of 64 layers attend
        (20480, 40, True, 3, True),  # Qwen3.6 35B-A3B
        (131072, 32, False, 8, False),  # Llama 3.1 8B
        (516096, 126, False, 405, False),  # Llama 3.1 405B
        (57344, 28, False, 7.6, False),  # Qwen2.5 7B
        (22528, 22, False, 1.1, False),  # TinyLlama
        (24576, 24, True, 3.6, False),  # gpt-oss 20B: windows, no state
        (0, 40, False, 14, False),  # not said
    ],
)
def test_hybrids_are_told_by_their_small_cache(kv: float, layers: float, moe: bool, parameters_b: float, hybrid: bool) -> None:
    found = predict.looks_hybrid(np.array([float(kv)]), np.array([float(layers)]), np.array([moe]), np.array([parameters_b * 1e9]))
    assert found[0] == hybrid


# ── the contract ──────────────────────────────────────────────────────────────────────────────────


def write_cases(path: Path, *rows: dict[str, str]) -> Path:
    pd.DataFrame(list(rows)).fillna("").to_csv(path, index=False)
    return path


def read_answers(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_good_rows_go_through_and_bad_ones_say_why(tmp_path: Path, run: Run) -> None:
    bad = {
        "no device 'rtx-309'": NAMED | {"device": "rtx-309"},
        "no model 'llama'": NAMED | {"model": "llama"},
        "no format 'Q4_K_X'": NAMED | {"format": "Q4_K_X"},
        "depth is -1": NAMED | {"depth": "-1"},
        "phase is 'training'": NAMED | {"phase": "training"},
        "backend is 'Glide'": NAMED | {"backend": "Glide"},
        "backend Metal does not run on nvidia-discrete": NAMED | {"backend": "Metal"},
        "engine is 'abacus'": NAMED | {"engine": "abacus"},
        "family is 'nvidea-discrete'": NUMBERS | {"family": "nvidea-discrete"},
        "weight_gb_read is 'much'": NUMBERS | {"weight_gb_read": "much"},
        "bandwidth_gb_per_s is nan": NUMBERS | {"bandwidth_gb_per_s": "nan"},
        "n_layers is 0": NUMBERS | {"n_layers": "0"},
        "moe is '7'": NUMBERS | {"moe": "7"},
        "neither device nor bandwidth_gb_per_s": {k: v for k, v in NUMBERS.items() if k != "bandwidth_gb_per_s"},
        "neither model and format nor weight_gb_read": {k: v for k, v in NUMBERS.items() if k != "weight_gb_read"},
    }
    cases = write_cases(tmp_path / "in.csv", NAMED, *bad.values(), NUMBERS)
    code, _, err = run("predict", "--cases", str(cases), "--out", str(tmp_path / "out.csv"))
    assert code == 1
    assert f"{len(bad)} of {len(bad) + 2} rows have no answer" in err
    rows = read_answers(tmp_path / "out.csv")
    assert set(rows[0]) >= {*frames_predict.COLUMNS, *frames_predict.OUTCOMES}
    for row in (rows[0], rows[-1]):
        assert float(row["low_tok_per_s"]) <= float(row["expected_tok_per_s"]) <= float(row["high_tok_per_s"]) <= float(row["ceiling_tok_per_s"])
    for said, row in zip(bad, rows[1:-1], strict=True):
        assert said in row["basis"]
        assert not any(row[name] for name in frames_predict.OUTCOMES[:-1])


def test_all_answered_is_exit_zero_and_inputs_come_back_as_they_were(tmp_path: Path, run: Run) -> None:
    row = NUMBERS | {"weight_gb_read": "4.60", "note": "kept, with a comma"}
    code, out, _ = run("predict", "--cases", str(write_cases(tmp_path / "in.csv", row)), "--out", str(tmp_path / "out.csv"), "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 1
    (answer,) = read_answers(tmp_path / "out.csv")
    assert {name: answer[name] for name in row} == row
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["in.csv", "out.csv"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no file"),
        ("model,format\nllama-3.1-8b,Q4_K_M\n", "no column device or bandwidth_gb_per_s"),
        ("device,model\nrtx-3090,llama-3.1-8b\n", "no column phase"),
        ("device,phase\nrtx-3090,decode\n", "no column model or weight_gb_read"),
        ("", "cannot be read as CSV"),
    ],
)
def test_misuse_is_exit_two_and_leaves_no_file(tmp_path: Path, run: Run, text: str | None, said: str) -> None:
    cases = tmp_path / "in.csv"
    if text is not None:
        cases.write_text(text, encoding="utf-8")
    code, _, err = run("predict", "--cases", str(cases), "--out", str(tmp_path / "out.csv"))
    assert code == 2
    assert said in err
    assert not (tmp_path / "out.csv").exists()


def test_an_answer_that_cannot_be_written_is_one_line(tmp_path: Path, run: Run) -> None:
    (tmp_path / "out.csv").mkdir()
    code, _, err = run("predict", "--cases", str(write_cases(tmp_path / "in.csv", NUMBERS)), "--out", str(tmp_path / "out.csv"))
    assert code == 2
    assert "cannot be written" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "rtx-3090"], "--device and --model are needed"),
        (["--device", "rtx-3090", "--model", "qwen3-8b", "--phase", "rest"], "--phase is 'rest'"),
        (["--device", "rtx-3090", "--model", "qwen3-8b", "--depth", "-5"], "--depth is -5"),
        (["--device", "rtx-3091", "--model", "qwen3-8b"], "did you mean 'rtx-3090'"),
        (["--cases", "x.csv"], "go together"),
        (["--cases", "x.csv", "--out", "y.csv", "--device", "rtx-3090"], "leave --device and --model out"),
    ],
)
def test_a_wrong_call_is_one_line(run: Run, arguments: list[str], said: str) -> None:
    code, _, err = run("predict", *arguments)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_one_prediction_on_the_terminal_and_as_json(run: Run) -> None:
    arguments = ["--device", "mac-studio-m4-max", "--model", "qwen3-30b-a3b", "--format", "MLX_4BIT", "--depth", "2000"]
    code, out, _ = run("predict", *arguments)
    assert code == 0
    assert "reading weights" in out
    code, out, _ = run("predict", *arguments, "--json")
    said = json.loads(out)
    assert said["low_tok_per_s"] <= said["expected_tok_per_s"] <= said["high_tok_per_s"] <= said["ceiling_tok_per_s"]
    assert "mlx is usual" in said["basis"]


def test_words_in_any_casing_mean_the_same_and_what_was_filled_in_is_said() -> None:
    one, other, filled = answers(
        NUMBERS,
        NUMBERS | {"backend": "cuda", "engine": "LLAMA.CPP", "phase": "Decode", "family": "NVIDIA-Discrete", "moe": "False", "format": "???"},
        NUMBERS | {"backend": "", "engine": "", "n_layers": "", "kv_bytes_per_token": "", "moe": ""},
    )
    assert other["expected_tok_per_s"] == one["expected_tok_per_s"]
    for said in ("CUDA is usual", "llama.cpp is usual", "n_layers not given", "kv_bytes_per_token not given", "moe not given"):
        assert said in filled["basis"]
    assert filled["high_tok_per_s"] / filled["low_tok_per_s"] > one["high_tok_per_s"] / one["low_tok_per_s"]


def test_a_cache_of_no_bytes_is_doubted_deep_in_a_context() -> None:
    shallow, deep = answers(*(NUMBERS | {"kv_bytes_per_token": "0", "depth": depth} for depth in ("100", "30000")))
    assert deep["expected_tok_per_s"] == pytest.approx(shallow["expected_tok_per_s"])
    assert deep["low_tok_per_s"] < shallow["low_tok_per_s"]
    assert "nothing of the context is read" in deep["basis"]


@pytest.mark.parametrize("hint", ["Q4_K_M", "q4", "MLX 4bit g32", "IQ4_NL", "UD-Q4_K_XL", "a guess", "4.5bpw"])
def test_a_format_beside_numbers_is_a_hint_and_never_refused(hint: str) -> None:
    (row,) = answers(NUMBERS | {"format": hint})
    assert row["expected_tok_per_s"] > 0


def test_a_name_that_is_no_id_is_a_label_beside_numbers() -> None:
    label, plain = answers(NUMBERS | {"device": "NVIDIA RTX 3999", "model": "Whatever-9B"}, NUMBERS)
    assert label["expected_tok_per_s"] == plain["expected_tok_per_s"]
    assert "no device 'NVIDIA RTX 3999' in the registry" in label["basis"]


def test_prefill_from_numbers_needs_the_active_parameters_or_says_where_they_are_from() -> None:
    given_, derived = answers(NUMBERS | {"phase": "prefill", "active_params_b": "8"}, NUMBERS | {"phase": "prefill", "format": "Q4_K_M"})
    assert given_["expected_tok_per_s"] == pytest.approx(derived["expected_tok_per_s"], rel=0.1)
    assert "FLOP per byte of bandwidth are typical of nvidia-discrete" in given_["basis"]
    assert "from the bytes read" in derived["basis"]


@settings(max_examples=15)
@given(
    st.lists(
        st.builds(
            lambda family, phase, *numbers: dict(
                zip(
                    ("family", "phase", "bandwidth_gb_per_s", "weight_gb_read", "active_params_b", "n_layers", "depth", "moe"),
                    map(str, (family, phase, *numbers)),
                    strict=True,
                )
            ),
            st.sampled_from(predict.FAMILIES),
            st.sampled_from(["decode", "prefill"]),
            st.floats(10, 9000),
            st.floats(0.01, 500),
            st.floats(0.1, 900),
            st.integers(1, 200),
            st.integers(0, 1_000_000),
            st.integers(0, 1),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_nothing_is_expected_above_its_ceiling(rows: list[dict[str, str]]) -> None:
    for row in answers(*(r | {"kv_bytes_per_token": "50000"} for r in rows)):
        assert 0 < row["low_tok_per_s"] <= row["expected_tok_per_s"] <= row["high_tok_per_s"]
        assert math.isnan(row["ceiling_tok_per_s"]) or row["high_tok_per_s"] <= row["ceiling_tok_per_s"]
        # Memory is a ceiling of decode that is always known.
        assert row["phase"] == "prefill" or row["ceiling_tok_per_s"] > 0


def test_many_rows_ask_the_registry_no_more_often_than_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what lets a hundred thousand rows take seconds; how many is a benchmark's business."""
    asked: list[str] = []
    for name in ("load_device", "load_model"):
        real = getattr(registry, name)
        monkeypatch.setattr(registry, name, lambda wanted, real=real, name=name: (asked.append(name), real(wanted))[1])

    def times(n: int) -> int:
        asked.clear()
        named = [NAMED | {"depth": str(i)} for i in range(n)]
        numbers = [NUMBERS | {"bandwidth_gb_per_s": f"{100 + i / 7:.3f}"} for i in range(n)]
        assert frames_predict.predict_cases(pd.DataFrame([*named, *numbers]).fillna(""))["expected_tok_per_s"].notna().all()
        return len(asked)

    times(2)
    assert 0 < times(1000) == times(20)


# ── what was fitted ───────────────────────────────────────────────────────────────────────────────


def test_errors_do_not_grow() -> None:
    """Left-out errors of the shipped calibration, as its fit wrote them; and its constants against the rates that the repository holds."""
    found = registry.load_calibration()
    most = {
        ("decode", "dense", "device"): (0.070, 0.22),
        ("decode", "dense", "model"): (0.053, 0.18),
        ("decode", "MoE", "device"): (0.105, 0.38),
        ("decode", "MoE", "model"): (0.105, 0.33),
        ("prefill", "dense", "device"): (0.06, 0.26),
        ("prefill", "dense", "model"): (0.11, 0.55),
        ("prefill", "MoE", "device"): (0.18, 0.31),
        ("prefill", "MoE", "model"): (0.23, 0.46),
    }
    for (phase, kind, left_out), (median, p90) in most.items():
        error = next(e for e in found.errors if (e.phase, e.group, e.kind, e.left_out) == (phase, "all", kind, left_out))
        assert error.median <= median
        assert error.p90 <= p90
        assert error.coverage is not None
        assert error.coverage > 0.8
        assert error.width is not None
        assert error.width < (2.0 if phase == "decode" else 3.3)
    for ranges in (found.decode_range, found.prefill_range):
        assert 0.87 < ranges.coverage < 0.94
    frame = frames_predict.predicted_frame()
    assert frame["expected_tok_per_s"].notna().all()
    off = frame["off"].abs()
    for kind, median, p90 in (("dense", 0.05, 0.15), ("MoE", 0.08, 0.23)):
        chosen = off[frame["kind"] == kind]
        assert chosen.median() <= median
        assert chosen.quantile(0.9) <= p90
    assert 0.88 < frame["inside"].mean() < 0.99


def test_the_shipped_constants_are_of_this_world() -> None:
    found = registry.load_calibration()
    assert found.fitted <= date.today()
    assert sum(found.sources.values()) == sum(found.rows.values())
    for name in GROUPS:
        group = found.decode[name]
        assert group.assumed == (group.rows == 0) == bool(group.note)
        assert 0.2 <= group.share <= 1
        assert 10 < group.layer_us < 300
        assert 10 < group.moe_us < 200
        assert 10 < group.hybrid_us < 200
    assert -0.3 < found.layer_per_year < 0
    assert 0.2 < found.old_share < 1
    assert 0 < found.prefill_slope < 1


def synthetic_rows(share: float, layer_us: float, seed: int = 1) -> pd.DataFrame:
    """Rates of three cards that obey the formula exactly, but for a percent."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, gb_per_s in (("Card A", 500.0), ("Card B", 900.0), ("Card C", 1500.0)):
        for i in range(25):
            gb, layers = float(rng.uniform(0.5, 30)), float(rng.integers(20, 80))
            seconds = gb / (share * gb_per_s) + layers * layer_us / 1e6
            rows.append({"machine": name, "device": name, "device_id": "", "family": "nvidia-discrete", "backend": "cuda", "engine": "llama.cpp"})
            rows[-1] |= {"model": f"m{i}", "model_key": f"m{i}", "format": "Q8_0", "moe": False, "hybrid": False, "latent": False, "n_layers": layers}
            rows[-1] |= {"weight_gb": gb, "kv_gb": 0.0, "kv_bytes_per_token": 0.0, "depth": 0.0, "bandwidth_gb_per_s": gb_per_s}
            rows[-1] |= {"tok_per_s": float(rng.normal(1, 0.01)) / seconds, "date": "2026", "source": "made"}
    return pd.DataFrame(rows)


def test_a_fit_finds_the_constants_that_made_its_rows_and_foretells_a_fourth_card() -> None:
    pytest.importorskip("scipy")
    rows = synthetic_rows(0.8, 50)
    machines = sorted(rows["machine"].unique())
    x = calibrate._decode_fit(rows, machines).solve()
    new = synthetic_rows(0.8, 50, seed=2).assign(machine="Card D", bandwidth_gb_per_s=700.0)
    new["tok_per_s"] = 1 / (new["weight_gb"] / (0.8 * 700) + new["n_layers"] * 50e-6)
    expected = calibrate._expected(new, calibrate._decode_fit(new, machines), x)["expected"]
    assert np.median(np.abs(expected / new["tok_per_s"] - 1)) < 0.02


@pytest.mark.parametrize(
    ("text", "said"), [("a,b\n1,2\n", "neither decode_tok_per_s nor tokens_per_s"), ("decode_tok_per_s\n1\n", "no column 'device'")]
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        calibrate.calibrate([path], date(2026, 1, 1))


def test_a_calibration_is_read_back_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = registry.load_calibration()
    data = copy_of_data(tmp_path, monkeypatch)
    assert calibrate.write(found) == data / "calibration.yaml"
    assert registry.load_calibration() == found


def test_check_data_names_what_a_calibration_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = copy_of_data(tmp_path, monkeypatch)
    path = data / "calibration.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace('  "apple-mlx": {"share"', '  "apple-mlxx": {"share"', 1), encoding="utf-8")
    assert any("data/calibration.yaml: decode" in problem for problem in registry.check_data())


HARD = """device,backend,engine,phase,model,format,depth,bandwidth_gb_per_s,family,weight_gb_read,n_layers,kv_bytes_per_token,moe
RTX-4090,cuda,LLAMA.CPP,Decode,Llama-3.1-8B,Q4_K_M,0,,,,,,,one cell too many
rtx-4090,CPU,llama.cpp,decode,llama-3.1-8b,Q4_K_M,0,,,,,,
,HIP,llama.cpp,decode,,,0,960,Radeon,4.6,32,131072,0
,cuda,llama.cpp,decode,,,1e308,960,nvidia-gpu,4.6,32,131072,0
,Metal,mlx,decode,,,0,400,Apple Silicon,4.6,32,131072,0
"""


def test_rows_as_strangers_write_them(run: Run, tmp_path: Path) -> None:
    """Casing and other names are understood, a cell too many moves no other, and what has no answer says why."""
    (tmp_path / "in.csv").write_text(HARD, encoding="utf-8")
    code, _, _ = run("predict", "--cases", tmp_path / "in.csv", "--out", tmp_path / "out.csv")
    assert code == 1
    found = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    assert list(found["device"]) == ["RTX-4090", "rtx-4090", "", "", ""]
    assert [bool(rate) for rate in found["expected_tok_per_s"]] == [True, False, True, False, True]
    assert "does not read the card's memory" in found["basis"][1]
    assert "too large or too small" in found["basis"][3]


def test_a_machine_measured_under_another_program_is_not_called_measured() -> None:
    """Its range is that of a stranger."""
    calibration = registry.load_calibration()
    other = next(d for d in calibration.devices if d.device and d.groups == ("apple-mlx",))
    here, there = (frames_predict.expected(other.device, "llama-3.1-8b", fmt, engine=e) for e, fmt in (("mlx", "MLX_4BIT"), ("llama.cpp", "Q4_K_M")))
    assert "this one among them" in here.basis
    assert "this one under another program" in there.basis


def test_tables_of_the_chapter_have_their_columns() -> None:
    for table in (
        frames_predict.errors_table(),
        frames_predict.errors_table(group=""),
        frames_predict.errors_table("prefill"),
        frames_predict.misses_table(),
        frames_predict.constants_table(),
        frames_predict.naive_and_model(),
    ):
        frame, headings, formats = table
        assert len(frame)
        assert set(headings) <= set(frame.columns)
        assert set(formats) <= set(headings)


def test_a_device_is_the_same_in_any_spelling() -> None:
    numbers = {"phase": "prefill", "weight_gb_read": "4.9", "n_layers": "32", "kv_bytes_per_token": "131072", "active_params_b": "8", "moe": "0"}
    found = frames_predict.predict_cases(pd.DataFrame([numbers | {"device": said} for said in ("rtx-5090", "RTX 5090", "rtx_5090")]))
    assert found["ceiling_tok_per_s"].notna().all()
    for name in frames_predict.OUTCOMES:
        assert found[name].nunique() == 1
