"""Prices, their age, and what they buy: against sums done by hand, and against each other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from fractions import Fraction
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml

from helpers import copy_of_data, stored
from nbutils import frames, frames_market, limits, places, plots, plots_market, registry
from nbutils.errors import DataError
from nbutils.specs import Configuration, Device

TODAY = date(2026, 11, 20)
FIVE = ("llama-3.1-8b", "qwen3-32b", "llama-3.3-70b", "qwen3-30b-a3b", "gpt-oss-120b")


def edit_market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict], None]) -> None:
    path = copy_of_data(tmp_path, monkeypatch) / "market.yaml"
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(fields)
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")


def find(device_id: str, configuration_id: str = "") -> tuple[Device, Configuration]:
    device = registry.load_device(device_id)
    return device, device.configuration(configuration_id)


# ── the files ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda m: m["offers"][0].update(device="dgx-sprak"),
            "data/market.yaml: offers.0: no device 'dgx-sprak' in data/devices; did you mean 'dgx-spark'?",
        ),
        (lambda m: m["offers"][0].update(configuration="64gb"), "data/market.yaml: offers.0: dgx-spark has no configuration '64gb'"),
        (lambda m: m["rents"][0].update(asked=date(2999, 1, 1)), "data/market.yaml: rents.0.asked: 2999-01-01 has not come yet"),
    ],
)
def test_what_does_not_exist_is_one_line_with_its_place(
    change: Callable[[dict], None], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_market(tmp_path, monkeypatch, change)
    (line,) = [line for line in registry.check_data() if "market.yaml" in line]
    assert line.startswith(problem)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["supply"][0].pop("due"), "data/market.yaml: supply.0: due: goes with state 'announced'"),
        (lambda m: m["supply"].append(m["supply"][3]), "data/market.yaml: file: dgx-spark stands twice"),
        (lambda m: m["host"].update(unit="W"), "data/market.yaml: file: host: a price is in USD"),
        (lambda m: m["sources"].pop("spheron"), "data/market.yaml: file: source 'spheron' is not listed"),
    ],
)
def test_a_market_that_contradicts_itself_is_not_read(
    change: Callable[[dict], None], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_market(tmp_path, monkeypatch, change)
    with pytest.raises(DataError) as caught:
        registry.load_market()
    assert str(caught.value).startswith(problem)


def test_a_page_for_a_device_that_is_none_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy_of_data(tmp_path, monkeypatch) / "pages.yaml").write_text("devices: [rtx-4909]\n", encoding="utf-8")
    assert registry.check_data() == ["data/pages.yaml: devices: no device 'rtx-4909' in data/devices; did you mean 'rtx-4090'?"]


# ── prices and their age ──────────────────────────────────────────────────────────────────────────


def test_the_later_price_counts_and_a_card_needs_a_computer() -> None:
    device, configuration = find("dgx-spark")
    asked = frames_market.latest_price(device, configuration)
    assert asked is not None
    assert configuration.price is not None
    assert asked.figure.asked > configuration.price.asked
    assert asked.usd == asked.figure.value > configuration.price.value
    card = frames_market.latest_price(*find("rtx-4090"))
    assert card is not None
    assert card.usd == card.figure.value + registry.load_market().host.value


def test_no_price_is_said_and_not_zero() -> None:
    device, configuration = find("mac-studio-m4-max", "128gb")
    assert frames_market.latest_price(device, configuration) is None
    assert frames_market.price_lines(device, configuration, TODAY)[0] == "Price of 128gb: no source names one."


def test_a_weak_price_has_its_mark_and_an_old_one_its_word() -> None:
    words = " ".join(frames_market.price_lines(*find("rtx-spark-n1x"), TODAY))
    assert "⚠ unverified" in words
    assert "2026-06-05, stale" in words
    assert "stale" not in " ".join(frames_market.price_lines(*find("rtx-spark-n1x"), date(2026, 6, 20)))


def test_what_is_known_of_a_configuration_goes_before_what_is_known_of_the_device() -> None:
    assert frames_market.supply_words(frames_market.supply_of("mac-studio-m4-max", "128gb"), TODAY).startswith("withdrawn since 2026-05-06")
    assert frames_market.supply_words(frames_market.supply_of("mac-studio-m4-max", "64gb"), TODAY).startswith("sold")


def test_what_was_announced_is_not_said_to_ship_and_what_nobody_says_is_unknown() -> None:
    assert "whether it is sold yet is not known here" in frames_market.supply_words(frames_market.supply_of("rtx-spark-n1x", "128gb"), TODAY)
    assert frames_market.supply_words(frames_market.supply_of("arc-b580", "12gb"), TODAY) == "not known here"


def test_tables_of_prices_and_rents_name_their_sources() -> None:
    prices, headings, _, links = frames_market.prices_table([registry.load_device("strix-halo"), registry.load_device("arc-b580")], TODAY)
    assert set(headings) <= set(prices.columns)
    assert prices.loc[prices["configuration"] == "128gb", "others"].item() == "1,999 to 3,999"
    assert prices.loc[prices["configuration"] == "96gb", "usd"].isna().all()
    assert all(url.startswith("https://") for url in prices.dropna(subset=["usd"])[links["source"]])
    rents, headings, _, _ = frames_market.rents_table(TODAY)
    assert set(rents["device"]) == {registry.load_device(r.device).name for r in registry.load_market().rents}


# ── what a budget buys ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bought() -> pd.DataFrame:
    return frames_market.budget_frame([registry.load_model(m) for m in FIVE], (1500, 3000, 5000), TODAY, n_ctx=8192)


def test_nothing_costs_more_than_the_budget_and_the_cheapest_no_more_than_the_fastest(bought: pd.DataFrame) -> None:
    found = bought[bought["device"] != ""]
    assert (found["usd"] <= found["budget_usd"]).all()
    sides = found.pivot(index=["budget_usd", "model"], columns="role", values=["usd", "ceiling_tok_per_s"])
    assert (sides["usd"]["cheapest"] <= sides["usd"]["fastest"]).all()
    assert (sides["ceiling_tok_per_s"]["cheapest"] <= sides["ceiling_tok_per_s"]["fastest"]).all()


def test_more_money_is_never_slower(bought: pd.DataFrame) -> None:
    best = bought[bought["role"] == "fastest"].pivot(index="model", columns="budget_usd", values="ceiling_tok_per_s").fillna(0)
    assert (best[1500] <= best[3000]).all()
    assert (best[3000] <= best[5000]).all()


def test_what_is_only_announced_stands_apart(bought: pd.DataFrame) -> None:
    is_spark = bought["device"].str.startswith("RTX Spark")
    assert set(bought.loc[is_spark, "role"]) == {"announced"}
    assert bought.loc[is_spark, "unverified"].all()


def test_a_budget_in_words_names_price_marks_and_what_is_missing(bought: pd.DataFrame) -> None:
    table, headings, _ = frames_market.budget_table(bought, 1500)
    assert set(headings) <= set(table.columns)
    assert table.loc[table["model"] == "Llama 3.3 70B Q4_K_M", "what"].tolist() == ["none with a known price holds it"]
    small = table[table["model"] == "Llama 3.1 8B Q4_K_M"].set_index("role")
    assert small.loc["fastest", "marks"] == "with host, stale"
    assert small.loc["fastest", "usd"] > small.loc["cheapest", "usd"]
    assert table.loc[table["model"] == "Qwen3 32B Q4_K_M", "role"].tolist() == ["fastest and cheapest"]


def test_a_machine_that_nobody_says_is_sold_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_spark(m: dict) -> None:
        m.update(supply=[s for s in m["supply"] if s["device"] == "dgx-spark"], offers=[], rents=[])
        m["sources"] = {key: m["sources"][key] for key in ("digital-spark", "rest", "parts")}

    edit_market(tmp_path, monkeypatch, only_spark)
    found = frames_market.budget_frame([registry.load_model("llama-3.1-8b")], (5000,), TODAY, n_ctx=8192).set_index("role")
    assert list(found["device"]) == ["DGX Spark", "DGX Spark", ""]
    assert found.loc["fastest", "usd"] == 3999, "the launch price, where no later one is known"


# ── buying against renting ────────────────────────────────────────────────────────────────────────


def test_at_break_even_both_have_cost_the_same() -> None:
    at = {"power_w": 140.0, "usd_per_kwh": 0.15, "own_tok_per_s": 4.5}
    tokens = frames_market.break_even_tokens(price_usd=4699, rent_usd_per_hour=2.69, rent_tok_per_s=56, **at)
    assert tokens is not None
    bought = 4699 + tokens / 4.5 / 3600 * 0.140 * 0.15
    assert bought == pytest.approx(tokens / 56 / 3600 * 2.69)


def test_where_electricity_alone_costs_more_than_rent_there_is_no_break_even() -> None:
    found = frames_market.break_even_tokens(price_usd=1, power_w=1000, usd_per_kwh=0.3, own_tok_per_s=1, rent_usd_per_hour=1, rent_tok_per_s=100)
    assert found is None


def test_what_a_million_tokens_cost_is_price_hours_and_electricity() -> None:
    device, configuration = find("dgx-spark")
    here = places.place(device, configuration)
    table, headings, _ = frames_market.cost_table(here, [registry.load_model("llama-3.3-70b")], n_ctx=8192, years=3, hours_a_day=4, share=0.7)
    (row,) = table.to_dict("records")
    rate = 0.7 * 273e9 / limits.decode_step_bytes(stored("llama-3.3-70b", "Q4_K_M"))
    assert row["rate"] == pytest.approx(rate)
    hours = 1e6 / rate / 3600
    asked = frames_market.latest_price(device, configuration)
    assert asked is not None
    assert row["own"] == pytest.approx(hours * (asked.usd / (3 * 365.25 * 4) + 0.140 * frames.USD_PER_KWH))
    rent = next(r for r in registry.load_market().rents if r.device == "h100-sxm")
    assert row["h100-sxm"] == pytest.approx(hours * 273 / 3350 * rent.value)
    assert pd.isna(row["rtx-4090"]), "42.5 GB are not held by a card with 24"
    assert set(headings) == set(table.columns)


def test_without_a_price_the_own_machine_has_no_column_and_a_sentence_says_so() -> None:
    here = places.place(*find("snapdragon-x-elite"))
    _, headings, _ = frames_market.cost_table(here, [registry.load_model("llama-3.1-8b")], n_ctx=8192, years=3, hours_a_day=4, share=0.7)
    assert "own" not in headings
    assert frames_market.cost_lines(here, TODAY, years=3, hours_a_day=4, share=0.7)[-1].endswith("no source names its price or its power.")


def test_break_even_leaves_out_what_does_not_hold_the_model_or_has_no_price() -> None:
    machines = [find("dgx-spark"), find("rtx-4090"), find("mac-studio-m4-max", "128gb")]
    table, headings, _ = frames_market.break_even_frame(machines, registry.load_model("llama-3.3-70b"), "h100-sxm", TODAY, n_ctx=8192, share=0.7)
    assert list(table["device"]) == ["DGX Spark 128gb"]
    (row,) = table.to_dict("records")
    assert row["own_hours"] / row["rent_hours"] == pytest.approx(3350 / 273), "the same tokens, at rates as the bandwidths"
    assert set(headings) <= set(table.columns)


# ── past the ceiling ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("accept", "n_draft"), [(Fraction(1, 2), 1), (Fraction(4, 5), 4), (Fraction(9, 10), 6), (Fraction(0), 3)])
def test_tokens_per_pass_is_the_mean_over_all_outcomes(accept: Fraction, n_draft: int) -> None:
    mean = Fraction(0)
    for outcome in product((True, False), repeat=n_draft):
        chance, kept = Fraction(1), 0
        for is_accepted in outcome:
            chance *= accept if is_accepted else 1 - accept
        while kept < n_draft and outcome[kept]:  # the first that is refused ends the pass
            kept += 1
        mean += chance * (kept + 1)
    assert frames_market.tokens_per_pass(float(accept), n_draft) == pytest.approx(float(mean))


def test_without_drafts_the_bound_is_the_ceiling_and_many_bad_ones_cost() -> None:
    target, draft = stored("llama-3.3-70b", "Q4_K_M"), stored("llama-3.1-8b", "Q4_K_M")
    frame = frames_market.speculative_frame(target, draft, 273e9, (0.1, 0.9), (0, 8)).set_index(["accept", "n_draft"])["tok_per_s"]
    ceiling = limits.decode_ceiling_tok_per_s(273e9, limits.decode_step_bytes(target))
    assert frame[0.1, 0] == frame[0.9, 0] == pytest.approx(ceiling)
    assert frame[0.1, 8] < ceiling < frame[0.9, 8]


# ── machines side by side ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def compared() -> pd.DataFrame:
    devices = [registry.load_device(d) for d in ("macbook-pro-m5-max", "rtx-spark-n1x", "rtx-4090", "snapdragon-x-elite")]
    return frames_market.compare_frame(devices, [registry.load_model(m) for m in FIVE], n_ctx=8192, n_prompt=2048)


def test_the_ratio_of_two_machines_is_the_same_for_every_model(compared: pd.DataFrame) -> None:
    wide = compared.pivot(index="model", columns="device_id", values="decode_ceiling_tok_per_s")
    ratios = wide["macbook-pro-m5-max"] / wide["rtx-spark-n1x"]
    assert ratios.to_numpy() == pytest.approx(614 / 300)


def test_a_cell_has_the_ceiling_what_was_measured_or_why_there_is_none(compared: pd.DataFrame) -> None:
    best = {("rtx-4090", "llama-3.1-8b", "Q4_K_M"): 164.6, ("rtx-4090", "llama-3.1-8b", "F16"): 61.0}
    rows = frames_market.compare_table(compared, best, "decode_ceiling_tok_per_s", 1)[0].set_index("device")
    assert rows.loc["RTX 4090", "Llama 3.1 8B"] == "218.3 (164.6)"
    assert rows.loc["RTX 4090", "Llama 3.3 70B"] == "does not fit"
    slow = frames_market.compare_table(compared, {}, "prefill_ceiling_tok_per_s", 0)[0].set_index("device")
    assert slow.loc["Snapdragon X Elite", "Llama 3.1 8B"] == "unknown"


def test_the_best_that_was_measured_is_of_a_model_of_the_registry() -> None:
    """A rate of a slower bin has no place beside the ceiling of the fastest."""
    columns = ["device", "configuration", "model", "format", "tok_per_s"]
    m4 = ("mac-studio-m4-max", "128gb", "m", "Q8_0")
    slower = ("mac-studio-m4-max", "36gb-32c", "m", "Q8_0")
    rows = [(*m4, 3.0), (*m4, 4.0), (m4[0], "", "m", "Q8_0", 3.5), (*m4[:2], "", "Q8_0", 9.0), (*slower, 5.0)]
    assert frames_market.best_measured(pd.DataFrame(rows, columns=columns)) == {("mac-studio-m4-max", "m", "Q8_0"): 4.0}


def test_the_figure_draws_what_fits_and_says_what_does_not(compared: pd.DataFrame) -> None:
    ax = plots_market.compared_ceilings(compared, {("rtx-4090", "llama-3.1-8b", "Q4_K_M"): 164.6}, ax=plots.new_axes())
    words = [text.get_text() for text in ax.texts]
    assert words.count("does not fit") == (compared["verdict"] == "does_not_fit").sum()
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())] == [164.6]
    plt.close("all")


def test_the_figure_of_budgets_says_where_nothing_holds_it(bought: pd.DataFrame) -> None:
    ax = plots_market.budget_ceilings(bought, ax=plots.new_axes())
    words = [text.get_text() for text in ax.texts]
    empty = ((bought["role"] == "fastest") & (bought["device"] == "")).sum()
    assert words.count("nothing with a known price holds it") == empty > 0
    plt.close("all")


# ── the page of one device ────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    models = [registry.load_model(m) for m in (*FIVE, "llama-3.1-405b")]
    return frames.device_frame(places.place(*find("dgx-spark")), models, n_ctx=8192)


def test_a_cell_of_the_matrix_says_in_words_and_colour_whether_it_fits_and_in_how_many_gb(rows: pd.DataFrame) -> None:
    words, verdicts = frames_market.fit_matrix(rows)
    of = rows.set_index(["model", "format"])
    for model, fmt in (("Llama 3.3 70B", "Q4_K_M"), ("Llama 3.1 405B", "F16")):
        assert words.loc[model, fmt].endswith(f"{of.loc[(model, fmt), 'total_bytes'] / 1e9:,.1f} GB")
        assert words.loc[model, fmt].split()[0] == {"fits": "fits", "does_not_fit": "no"}[verdicts.loc[model, fmt]]
    assert words.loc["gpt-oss 120B", "Q4_K_M"] == "", "not published in it"
    html = plots_market.fit_table(words, verdicts).to_html()
    assert "Llama 3.3 70B" in html
    assert html.count("background-color") >= 2


def test_a_name_from_data_is_text_in_the_matrix() -> None:
    frame = pd.DataFrame({"F16": ["fits 1.0 GB"]}, index=pd.Index(["<b>x</b>"], name="model"))
    html = plots_market.fit_table(frame, frame.map(lambda _: "fits")).to_html()
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    assert "<b>" not in html


def test_advice_follows_from_what_fits_and_how_fast(rows: pd.DataFrame) -> None:
    lines = frames_market.advice(rows, pace_tok_per_s=10, n_prompt=2048)
    assert lines[0] == "For dense models at 10 tok/s or more: up to Qwen3 32B Q4_K_M (at most 14.1 tok/s)."
    assert lines[1].startswith("For mixtures of experts at 10 tok/s or more: up to gpt-oss 120B")
    assert lines[2] == "It holds, and cannot decode at that pace: Llama 3.3 70B Q4_K_M (at most 6.5 tok/s)."
    assert lines[3].startswith("Not for: Llama 3.1 405B.")
    prefill = rows[(rows["model"] == "Llama 3.3 70B") & rows["usual"]]["prefill_ceiling_tok_per_s"].item()
    assert lines[4].endswith(f"takes {2048 / prefill:,.1f} s at least.")


def test_advice_for_nobody_and_for_all(rows: pd.DataFrame) -> None:
    lines = frames_market.advice(rows, pace_tok_per_s=1e6, n_prompt=2048)
    assert [line for line in lines if "nobody" in line] == lines[:2]
    everything = frames_market.advice(rows.assign(verdict="fits", prefill_ceiling_tok_per_s=None), pace_tok_per_s=0.1, n_prompt=2048)
    assert "It holds every model of this book in the format most people run." in everything
    assert everything[-1] == "How long a prompt takes cannot be said: its arithmetic is not known."
