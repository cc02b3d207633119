"""What ``--device`` names: a configuration of the registry, all of them, or the machine this runs on."""

from __future__ import annotations

from typing import Any

import pytest

from nbutils import places, probe, registry
from nbutils.errors import UnknownId, UsageError
from nbutils.places import Place
from nbutils.specs import Gpu, Machine

GIB = 2**30


def machine(**changes: Any) -> Machine:
    fields: dict[str, Any] = {
        "device": "unlisted",
        "system": "Linux 6.8",
        "architecture": "x86_64",
        "cpu": "A processor",
        "n_cores": 8,
        "n_threads_hw": 16,
        "memory_bytes": 64 * GIB,
        "memory_available_bytes": 60 * GIB,
    }
    return Machine(**(fields | changes))


@pytest.fixture
def this(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ``this`` names on a machine with these properties."""

    def found(*, memory_gb: float | None = None, **changes: Any) -> Place:
        monkeypatch.setattr(probe, "machine", lambda: machine(**changes))
        (place,) = places.find("this", memory_gb=memory_gb)
        return place

    return found


# ── the registry ──────────────────────────────────────────────────────────────────────────────────


def test_a_device_is_every_configuration_it_is_sold_in() -> None:
    device = registry.load_device("mac-studio-m3-ultra")
    found = places.find("mac-studio-m3-ultra")
    assert [p.configuration for p in found] == [c.id for c in device.configurations]
    assert [p.memory_gb for p in found] == [96, 256, 512]
    assert [(p.memory_gb, p.configuration) for p in places.find("mac-studio-m3-ultra", memory_gb=256)] == [(256, found[1].configuration)]
    assert [p.memory_gb for p in places.find("mac-studio-m3-ultra", configuration=found[2].configuration)] == [512]


def test_one_size_may_be_sold_with_two_bandwidths() -> None:
    """All places of the registry are found again by what they are sold with, and by their own names."""
    whole = places.all_places()
    assert len(whole) == sum(len(registry.load_device(i).configurations) for i in registry.device_ids())
    for p in whole:
        assert p in places.find(p.device_id, memory_gb=p.memory_gb)
        assert places.find(p.device_id, configuration=p.configuration) == [p]


@pytest.mark.parametrize(
    ("arguments", "kind", "complaint"),
    [
        ({"device_id": "dgx-sprak"}, UnknownId, "no device 'dgx-sprak' in data/devices; did you mean 'dgx-spark'?"),
        ({"device_id": "thiss"}, UnknownId, "did you mean 'this'?"),
        ({"device_id": "dgx-spark", "configuration": "128g"}, UnknownId, "dgx-spark has no configuration '128g'; did you mean '128gb'?"),
        ({"device_id": "dgx-spark", "memory_gb": 77.0}, UsageError, "dgx-spark is not sold with 77 GB; it is with 128"),
        (
            {"device_id": "dgx-spark", "memory_gb": 64.0, "configuration": "128gb"},
            UsageError,
            "dgx-spark 128gb has 128 GB, not 64; leave one of the two out",
        ),
        ({"device_id": "rtx-3060", "memory_gb": 24.0}, UsageError, "rtx-3060 is not sold with 24 GB; it is with 8, 12"),
    ],
    ids=str,
)
def test_what_is_not_sold_is_said_with_what_is(arguments: dict[str, Any], kind: type[UsageError], complaint: str) -> None:
    with pytest.raises(kind) as caught:
        places.find(**arguments)
    assert complaint in str(caught.value)


def test_every_place_has_room_a_bandwidth_and_a_source_for_each() -> None:
    for p in places.all_places():
        assert 0 < p.room.available_bytes < p.room.memory_bytes, p
        assert p.room.overhead_bytes > 0
        assert p.bandwidth_bytes_per_s
        assert {"memory", "unusable", "system", "overhead", "bandwidth"} <= p.sources.keys()
        assert all(p.sources.values())


def test_mlx_is_for_apple_vllm_for_the_others_and_llama_cpp_for_all(this: Any) -> None:
    engines = ("llama.cpp", "vllm", "mlx")
    assert [places.find("mac-mini-m4")[0].runs(e) for e in engines] == [True, False, True]
    assert [places.find("rtx-4090")[0].runs(e) for e in engines] == [True, True, False]
    assert [this().runs(e) for e in engines] == [True, True, False]


def test_the_best_known_peak_is_taken_and_none_where_none_is_known(this: Any) -> None:
    spark = places.find("dgx-spark")[0]
    assert spark.device is not None
    dense = {p.dtype: p.base("compute") for p in spark.device.peaks if p.basis == "dense" and p.accumulate != "fp16"}
    for arithmetic in (("fp16",), ("fp16", "fp4"), ("fp16", "fp8")):
        best = max((d for d in arithmetic if d in dense), key=lambda d: dense[d])
        value, source = spark.peak(arithmetic)
        assert value == dense[best]
        assert source.startswith(f"{best.upper()}, ")
    assert this().peak(("fp16", "int8")) == (None, "")


def test_a_configuration_with_another_chip_has_its_own_peaks() -> None:
    """An M4 Max with 32 of 40 GPU cores does 32/40 of the arithmetic; so does an M3 Max with 30 of 40."""
    for device_id, share in (("mac-studio-m4-max", 32 / 40), ("macbook-pro-m3-max", 30 / 40)):
        found = {p.configuration: p.peak(("fp16",))[0] or 0.0 for p in places.find(device_id)}
        own = {c.id for c in registry.load_device(device_id).configurations if c.peaks}
        (fewer,), (whole,) = {found[i] for i in own}, {found[i] for i in found.keys() - own}
        assert fewer == pytest.approx(share * whole, rel=1e-3)


def test_sums_in_fp16_count_only_where_they_are_asked_for() -> None:
    """A GeForce of these years multiplies FP16 twice as fast when it sums in FP16 (NVIDIA's Ada whitepaper: 330.3 and 165.2)."""
    (card,) = places.find("rtx-4090")
    (wide, source), (either, _) = card.peak(("fp16",)), card.peak(("fp16/any",))
    assert (wide, either) == (pytest.approx(165.2e12, rel=0.01), pytest.approx(330.3e12, rel=0.01))
    assert source.startswith("FP16, ")
    assert card.peak(("fp16/any", "int8"))[0] == card.peak(("int8",))[0]


def test_a_memory_of_its_own_has_the_card_and_the_sources_name_power_and_price() -> None:
    assert [places.find(d)[0].discrete for d in ("rtx-4090", "dgx-spark", "mac-mini-m4")] == [True, False, False]
    for p in places.all_places():
        assert p.device is not None
        assert p.discrete == (p.device.memory_kind == "discrete")
        assert ("power" in p.sources, "price" in p.sources) == (p.power_w is not None, p.price_usd is not None)


# ── this machine ──────────────────────────────────────────────────────────────────────────────────


def test_an_unlisted_machine_is_judged_by_what_it_says(this: Any) -> None:
    found = this()
    assert (found.device_id, found.configuration, found.memory_gb, found.backend) == ("this", "", 64, "cpu")
    assert (found.bandwidth_bytes_per_s, found.price_usd, found.power_w, found.device) == (None, None, None, None)
    room = found.room
    assert (room.memory_bytes, room.unusable_bytes, room.system_bytes) == (64 * GIB, 0, 4 * GIB)
    assert room.available_bytes == 60 * GIB
    assert found.sources["memory"] == "what this machine says"
    assert found.sources["system"] == "in use when asked"


def test_a_card_that_nobody_lists_counts_by_its_own_memory(this: Any) -> None:
    found = this(gpus=(Gpu(name="NVIDIA Nobody's Card", memory_bytes=40 * GIB),), system="Windows 11")
    assert (found.backend, found.room.memory_bytes, found.discrete) == ("cuda", 40 * GIB, True)
    assert not this().discrete
    runtimes = registry.load_runtimes()
    assert found.room.system_bytes == round(runtimes.systems["windows"].discrete.base("memory")), "what the system takes of a card, not of the rest"
    assert found.room.overhead_bytes == round(runtimes.backends["cuda"].overhead.base("memory"))
    assert this(gpus=(Gpu(name="Silent", memory_bytes=None),)).room.memory_bytes == 64 * GIB


def test_an_apple_machine_lends_its_gpu_what_was_set(this: Any) -> None:
    found = this(system="Darwin 25.1", architecture="arm64", apple_working_set_bytes=48 * GIB)
    assert (found.backend, found.room.unusable_bytes) == ("metal", 16 * GIB)
    assert this(system="Darwin 25.1", architecture="x86_64").backend == "cpu"


def test_a_listed_machine_is_its_configuration_of_the_registry(this: Any) -> None:
    assert this(device="dgx-spark", configuration="128gb") == places.find("dgx-spark", configuration="128gb")[0]


@pytest.mark.parametrize("listed", [{}, {"device": "dgx-spark", "configuration": "128gb"}], ids=["unlisted", "listed"])
def test_this_machine_is_what_it_is(listed: dict[str, Any], this: Any) -> None:
    with pytest.raises(UsageError, match="--memory-gb 8 does not go with --device this: its memory is what it is"):
        this(memory_gb=8, **listed)
    with pytest.raises(UsageError, match="--configuration '64gb' does not go with --device this: it is the one it is"):
        places.find("this", configuration="64gb")


def test_the_machine_that_runs_this_has_some_room() -> None:
    (found,) = places.find("this")
    assert found.room.memory_bytes > 0
