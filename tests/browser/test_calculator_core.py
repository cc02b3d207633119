"""The page's arithmetic against Python's: thousands of random questions, every number, every line of every explanation.

``book/calculator/core.js`` runs in headless Chromium on the data that the page is given; ``nbutils.calculator`` answers the same questions.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from nbutils import calculator, predict
from nbutils.calculator import Query
from nbutils.errors import UsageError
from nbutils.explain import Line

CORE = Path(__file__).resolve().parents[2] / "book" / "calculator" / "core.js"
SEED, ANSWERS, COMPARISONS, NEEDS = 20261120, 2400, 200, 600
#: Whole numbers up to here are exact in both languages; above it digits are lost, and equal to 1e-9 is all that can be asked.
EXACT = 2**53
#: A line's number that was rounded may fall to the other side where two exponential functions differ in their last bit; below this it cannot be seen.
ROUNDED = 10**13


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return calculator.data(date(2026, 11, 20))


@pytest.fixture(scope="module")
def core(data: dict[str, Any], browser: Any) -> Iterator[Callable[[str, list[Any]], list[Any]]]:
    """Calls one function of the page for each of many arguments; ``None`` stands where it threw."""
    page = browser.new_page()
    page.add_script_tag(content=CORE.read_text(encoding="utf-8"))
    page.evaluate("text => { window.DATA = JSON.parse(text); }", calculator.to_json(data))

    def call(name: str, arguments: list[Any]) -> list[Any]:
        # As text: it is quicker than letting Playwright walk a million values.
        text = page.evaluate(f"text => JSON.stringify(JSON.parse(text).map(one => CalculatorCore.{name}(DATA, one)))", json.dumps(arguments))
        found: list[Any] = json.loads(text)
        return found

    yield call
    page.close()


# ── questions ─────────────────────────────────────────────────────────────────────────────────────


def near(rng: random.Random, least: float, most: float, digits: int = 2) -> float:
    """A number that is as often small as large."""
    return min(most, max(least, round(math.exp(rng.uniform(math.log(least), math.log(most))), digits)))


def some_context(rng: random.Random, trained: int) -> int:
    return rng.choice(
        [
            rng.choice([1, 2, 255, 256, 257, 511, 512, 513]),
            rng.choice([1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072]),
            trained,
            round(near(rng, 1, trained, 0)),
            round(near(rng, 1, trained, 0)),
            rng.randint(trained + 1, 8 * trained),
            round(near(rng, 1, 1e9, 0)),
        ]
    )


def some_place(rng: random.Random, data: dict[str, Any], engine: str) -> str:
    fit = [place_id for place_id, place in data["places"].items() if engine in place["where"]]
    chosen = rng.choice([rng.choice(list(data["places"])), "own", *[rng.choice(fit)] * 8])
    return "budget" if rng.random() < 0.02 else chosen


def own_machine(rng: random.Random, data: dict[str, Any], engine: str) -> dict[str, Any]:
    """A machine as somebody may type it: like one of the registry, at the edge of a kind, or anything."""
    like = rng.choice(list(data["places"].values()))
    runs = [family for family, facts in data["typed"]["families"].items() if engine in facts["engines"]]
    own = {
        "family": rng.choice([rng.choice(runs), like["family"] if engine in like["where"] else rng.choice(runs)]),
        "memory_gb": rng.choice([like["gb"], near(rng, 1, 4000, 1), near(rng, 0.001, 1e6, 3)]),
        "bandwidth_gb_per_s": rng.choice([like["bandwidth"] / 1e9, 1850, 1849.9, near(rng, 20, 9000, 1), near(rng, 0.001, 1e6, 3)]),
        "compute_tflop_per_s": rng.choice([None, near(rng, 0.5, 2000, 1), near(rng, 0.001, 1e6, 3)]),
        "power_w": rng.choice([None, near(rng, 5, 1000, 1)]),
        "price_usd": rng.choice([None, near(rng, 100, 50000, 2), 2500.5]),
    }
    return own


def some_query(rng: random.Random, data: dict[str, Any]) -> Query:
    model_id = rng.choice(list(data["models"]))
    model = data["models"][model_id]
    format_id = rng.choice(list(model["formats"]))
    engine = data["formats"][format_id]["engine"]
    may = list(model["kv"][engine])
    kv_type = rng.choice(
        ["f16", rng.choice(may), rng.choice(may), rng.choice(["f16", "q8_0", "q4_0", "fp8", "q8", "q4"]) if rng.random() < 0.1 else "f16"]
    )
    return Query(
        model=model_id,
        format=format_id,
        n_ctx=some_context(rng, model["trained"]),
        kv_type=kv_type,
        batch=rng.choice([1, 1, 1, 1, 1, 2, 3, 8, 64, rng.randint(1, 512), round(near(rng, 1, 1e6, 0))]),
        filled=rng.choice(calculator.FILLED),
        place=some_place(rng, data, engine),
        budget_usd=near(rng, 500, 20000, 0),
        want_tok_per_s=near(rng, 0.1, 3000, 1),
        years=rng.choice([3, 1, 2.5, near(rng, 0.1, 20, 2)]),
        usd_per_kwh=rng.choice([0.15, 0, 0.3, near(rng, 0.01, 2, 3)]),
        **own_machine(rng, data, engine),
    )


def some_queries(data: dict[str, Any], n: int, seed: int) -> list[Query]:
    rng = random.Random(seed)
    return [some_query(rng, data) for _ in range(n)]


# ── equal ─────────────────────────────────────────────────────────────────────────────────────────


def or_none(ask: Callable[[Query], Any], query: Query) -> Any:
    try:
        return ask(query)
    except UsageError:
        return None


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where the page differs from Python: numbers by more than 1e-9, everything else at all. What only the page says is not looked at."""
    if isinstance(ours, Line):
        large = isinstance(ours.value, int) and abs(ours.value) >= ROUNDED
        ours = asdict(ours) | ({"value": float(ours.value)} if large and ours.value else {"shown": ours.shown})
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [found for name in ours for found in differences(ours[name], theirs.get(name, "missing"), f"{where}.{name}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [found for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for found in differences(a, b, f"{where}[{i}]")]
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)) and isinstance(ours, bool) == isinstance(theirs, bool):
        exact = isinstance(ours, int) and abs(ours) < EXACT
        same = ours == theirs if exact else math.isclose(ours, theirs, rel_tol=1e-9)
    else:
        same = type(ours) is type(theirs) and ours == theirs
    return [] if same else [f"{where}: Python {ours!r}, page {theirs!r}"]


def first_differences(queries: list[Query], ours: list[Any], theirs: list[Any]) -> list[str]:
    found = []
    for query, a, b in zip(queries, ours, theirs, strict=True):
        found += [f"{query}\n  {said}" for said in differences(a, b)[:3]]
    return found[:5]


#: What a row of ``fit`` says besides what the page needs.
ONLY_PYTHON = {"configuration"}


def test_thousands_of_answers_are_python_s(data: dict[str, Any], core: Any) -> None:
    queries = some_queries(data, ANSWERS, SEED)
    ours = [or_none(calculator.answer, query) for query in queries]
    asked = [None if a is None else {name: value for name, value in a.items() if name not in ONLY_PYTHON} for a in ours]
    assert first_differences(queries, asked, core("answer", [asdict(query) for query in queries])) == []
    answered = [a for a in ours if a is not None]
    assert len(answered) >= 2000
    # Nothing would be shown by two thousand questions of one kind.
    assert {a["verdict"] for a in answered} == {"fits", "tight", "does_not_fit"}
    assert {a["compute_buffer_basis"] for a in answered} == {"kept", "upper_bound", "allowance"}
    assert {a["rate_used"] for a in answered} == {"expected", "ceiling"}
    assert {a["binding"] for a in answered} == {"bandwidth", "compute"}
    assert {(a["model"], a["format"]) for a in answered} == {(m, f) for m, model in data["models"].items() for f in model["formats"]}
    assert {a["place"] for a in answered} == {*data["places"], "own"}
    assert {query.family for query, a in zip(queries, ours, strict=True) if a and a["place"] == "own"} == set(predict.FAMILIES)


def test_comparisons_are_python_s(data: dict[str, Any], core: Any) -> None:
    rng = random.Random(SEED + 1)
    queries = [replace(query, place=rng.choice([query.place, "own", "budget"])) for query in some_queries(data, COMPARISONS, SEED + 1)]
    ours = [or_none(calculator.compare, query) or [] for query in queries]
    assert first_differences(queries, ours, core("compare", [asdict(query) for query in queries])) == []
    assert sum(bool(rows) for rows in ours) > COMPARISONS * 0.8


def test_the_cheapest_that_holds_it_is_python_s_and_a_budget_that_buys_nothing_names_it(data: dict[str, Any], core: Any) -> None:
    queries = [replace(query, place="budget", budget_usd=1) for query in some_queries(data, 60, SEED + 5)]
    ours = [or_none(calculator.cheapest, query) for query in queries]
    asked = [asdict(query) for query in queries]
    assert first_differences(queries, ours, core("cheapest", asked)) == []
    offered = [[problem for problem in said if "budget_usd" in problem] for said in core("check", asked)]
    assert [said[0]["place"] if said else None for said in offered] == [best and best["place"] for best in ours]
    assert {best is None for best in ours} == {True, False}
    for query, said in zip(queries, offered, strict=True):
        if said:
            paid = calculator.answer(replace(query, budget_usd=said[0]["budget_usd"]))
            assert paid["verdict"] != "does_not_fit", "what is offered is enough"


def test_what_a_rate_needs_is_python_s(data: dict[str, Any], core: Any) -> None:
    queries = [query for query in some_queries(data, NEEDS, SEED + 2) if query.place != "budget"]
    ours = [or_none(calculator.need, query) for query in queries]
    assert first_differences(queries, ours, core("need", [asdict(query) for query in queries])) == []
    assert len({need["expected_bandwidth_bytes_per_s"] is None for need in ours if need}) == 2, "some rates no bandwidth gives"


# ── the address ───────────────────────────────────────────────────────────────────────────────────


def test_a_link_gives_the_question_back(data: dict[str, Any], core: Any) -> None:
    queries = [
        asdict(query) for query in some_queries(data, 500, SEED + 3) if query.kv_type in data["models"][query.model]["kv"][engine_of(data, query)]
    ]
    links = core("link", queries)
    assert core("parse", links) == [{"query": query, "problems": []} for query in queries]
    assert links == [calculator.link(Query(**query)) for query in queries]
    assert max(map(len, links)) < 300
    assert core("link", [asdict(Query())]) == ["#m=llama-3.3-70b&f=Q4_K_M&c=8192&k=f16&b=1&d=half&p=dgx-spark/128gb&t=20&y=3&kwh=0.15"]


def engine_of(data: dict[str, Any], query: Query) -> str:
    return str(data["formats"][query.format]["engine"])


@pytest.mark.parametrize(
    ("link", "field"),
    [
        ("#m=__proto__", "model"),
        ("#m=constructor", "model"),
        ("#f=toString", "format"),
        ("#f=MLX_4BIT&m=gpt-oss-120b", "format"),
        ("#p=__proto__", "place"),
        ("#p=dgx-spark", "place"),
        ("#family=hasOwnProperty", "family"),
        ("#k=constructor", "kv_type"),
        ("#k=q8", "kv_type"),
        ("#d=quarter", "filled"),
        ("#c=-5", "n_ctx"),
        ("#c=0", "n_ctx"),
        ("#c=1e6", "n_ctx"),
        ("#c=0x10", "n_ctx"),
        ("#c=8192.5", "n_ctx"),
        ("#c=99999999999999999999", "n_ctx"),
        ("#c=", "n_ctx"),
        ("#b=Infinity", "batch"),
        ("#gb=NaN", "memory_gb"),
        ("#m=%E0%A4%A", "model"),
        ("#m=<img src=x onerror=alert(1)>", "model"),
        ("#__proto__=1", "link"),
        ("#constructor=1", "link"),
        ("#anchor", "link"),
        (f"#m={'a' * 200}", "model"),
        (f"#c=4096&{'x' * 5000}", "link"),
    ],
)
def test_a_broken_link_is_said_and_the_usual_taken(link: str, field: str, data: dict[str, Any], core: Any) -> None:
    (found,) = core("parse", [link])
    assert field in {problem["field"] for problem in found["problems"]}
    assert all(len(problem["message"]) < 200 for problem in found["problems"])
    expected = asdict(Query())
    if "gpt-oss" in link:
        expected |= {"model": "gpt-oss-120b", "format": data["models"]["gpt-oss-120b"]["usual"]}
    assert found["query"] == expected | ({"n_ctx": 4096} if "4096" in link else {})
    assert core("answer", [found["query"]]) != [None]


def test_the_last_of_two_counts(core: Any) -> None:
    (found,) = core("parse", ["#c=100&c=200&c=300"])
    assert (found["query"]["n_ctx"], found["problems"]) == (300, [])


def test_no_text_makes_it_fail_and_whatever_it_says_has_an_answer(core: Any) -> None:
    rng = random.Random(SEED + 4)
    keys = ["m", "f", "c", "k", "b", "d", "p", "t", "y", "kwh", "budget", "gb", "gbs", "tflops", "family", "w", "usd", "__proto__", ""]
    values = [
        "own",
        "budget",
        "mixtral-8x7b",
        "MLX_8BIT",
        "FP8",
        "fp8",
        "1",
        "0",
        "-1",
        "1e9",
        "4096",
        "apple",
        "full",
        "%",
        "%00",
        "&",
        "=",
        "\ud800",
        "💥",
        "<",
    ]
    texts = ["#" + "&".join(f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.randint(0, 12))) for _ in range(1500)]
    texts += ["".join(chr(rng.choice([rng.randint(0, 127), rng.randint(0, 0x2FFF)])) for _ in range(rng.randint(0, 60))) for _ in range(500)]
    found = [parsed["query"] for parsed in core("parse", texts)]
    problems, answers = core("check", found), core("answer", found)
    for text, said, answer in zip(texts, problems, answers, strict=True):
        assert (answer is None) == any(problem["level"] == "error" for problem in said), text


# ── what is wrong with a question ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "field", "level"),
    [
        ({"n_ctx": 0}, "n_ctx", "error"),
        ({"n_ctx": 2.5}, "n_ctx", "error"),
        ({"n_ctx": "4096"}, "n_ctx", "error"),
        ({"n_ctx": None}, "n_ctx", "error"),
        ({"n_ctx": 10**10}, "n_ctx", "error"),
        ({"batch": -3}, "batch", "error"),
        ({"model": "llama-2-7b", "n_ctx": 10**6}, "n_ctx", "warning"),
        ({"model": "valueOf"}, "model", "error"),
        ({"format": "Q9_K"}, "format", "error"),
        ({"kv_type": "fp8"}, "kv_type", "error"),
        ({"model": "llama-4-scout", "format": "MLX_4BIT", "place": "mac-studio-m3-ultra/512gb", "kv_type": "q8"}, "kv_type", "error"),
        ({"format": "MLX_4BIT"}, "format", "error"),
        ({"format": "FP8", "place": "mac-studio-m3-ultra/512gb"}, "format", "error"),
        ({"place": "nowhere/1gb"}, "place", "error"),
        ({"filled": "quarter"}, "filled", "error"),
        ({"place": "budget", "budget_usd": 10}, "budget_usd", "error"),
        ({"place": "own", "memory_gb": -1}, "memory_gb", "error"),
        ({"place": "own", "family": "__proto__"}, "family", "error"),
        ({"want_tok_per_s": 0}, "want_tok_per_s", "error"),
        ({"years": 0}, "years", "error"),
    ],
)
def test_what_is_wrong_is_said_with_the_field(change: dict[str, Any], field: str, level: str, core: Any) -> None:
    query = asdict(Query()) | change
    (said,) = core("check", [query])
    assert [(problem["field"], problem["level"]) for problem in said] == [(field, level)]
    assert said[0]["message"].endswith(".")
    assert (core("answer", [query]) == [None]) == (level == "error" and field != "want_tok_per_s")
    assert core("compare", [query]) is not None


def test_what_a_rate_needs_does_not_depend_on_a_good_place(core: Any) -> None:
    queries = [asdict(Query(place="nowhere/1gb")), asdict(Query(format="MLX_4BIT")), asdict(Query(place="budget", budget_usd=10))]
    for found in core("need", queries):
        assert (found["family"], found["expected_bandwidth_bytes_per_s"]) == (None, None)
        assert found["bandwidth_bytes_per_s"] > 0
    assert core("need", [asdict(Query(want_tok_per_s=0)), asdict(Query(model="none"))]) == [None, None]


def test_a_good_question_has_nothing_wrong(core: Any) -> None:
    assert core("check", [asdict(Query()), asdict(Query(place="own")), asdict(Query(place="budget"))]) == [[], [], []]
