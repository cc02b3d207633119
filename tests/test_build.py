"""The whole way from a clone to a book, run once as users run it; what has not changed is not run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nbutils import build, records


def modified(folder: Path, pattern: str) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob(pattern))}


def measured(checkout: Any) -> dict[str, int]:
    """Everything that a measurement leaves behind."""
    return modified(checkout.home / "records", "*.json") | modified(checkout.root / "_build" / "nbutils" / "runs", "*.ipynb")


def executed(checkout: Any) -> dict[str, int]:
    """Every page that papermill makes."""
    return modified(checkout.root / "book", "*.ipynb")


def pages(checkout: Any) -> set[str]:
    return {p.relative_to(checkout.html / "book").with_suffix("").as_posix() for p in (checkout.html / "book").rglob("*.html")}


def test_a_clone_becomes_a_book_with_the_pages_of_devices_and_of_this_machine(built: Any) -> None:
    assert (built.checkout.html / "index.html").is_file()
    wanted = yaml.safe_load((built.checkout.root / "data" / "pages.yaml").read_text(encoding="utf-8"))["devices"]
    devices = {f"devices/{device_id}" for device_id in wanted}
    articles = {f"articles/{p.stem}" for p in (built.checkout.root / "data" / "articles").glob("*.yaml")}
    chapters = {p.stem for p in (built.checkout.root / "book").glob("*.md")}
    assert pages(built.checkout) == articles | devices | chapters | {"here/this-machine", "here/probe", "here/fit", "proof/proof"}


def test_the_build_ends_with_the_measurements_and_the_page_to_open(built: Any) -> None:
    *_, stages, last = built.said.stdout.splitlines()
    assert last == f"book: {built.checkout.html / 'index.html'}"
    assert stages.startswith("stages: ")
    for name in ("stand-in-dense-small", "stand-in-moe-small", "F16", "Q8_0", "Q4_K_M", "Measured on this machine"):
        assert name in built.said.stdout
    assert "Traceback" not in built.said.stdout


def test_six_files_were_measured_into_the_users_own_folder(built: Any) -> None:
    found = [records.read(p) for p in records.list_records(built.checkout.home / "records")]
    assert {(r.model.name, r.model.gguf_type) for r in found} == {
        (f"stand-in-{kind}-small", fmt) for kind in ("dense", "moe") for fmt in ("F16", "Q8_0", "Q4_K_M")
    }
    assert len(found) == 6
    assert all(r.backend.device == "CPU" and r.suite.id == "smoke" for r in found)


def test_no_record_of_the_build_names_a_path_of_this_machine(built: Any) -> None:
    private = {str(built.checkout.root), str(built.checkout.home), str(Path.home())}
    for path in records.list_records(built.checkout.home / "records"):
        text = path.read_text(encoding="utf-8")
        assert [word for word in private if word in text] == []


def test_no_file_that_git_knows_or_would_add_has_changed(built: Any) -> None:
    assert built.checkout.git("status", "--porcelain") == ""


def test_a_second_build_runs_nothing_and_measures_nothing(built: Any) -> None:
    checkout = built.checkout
    before = measured(checkout), executed(checkout), modified(checkout.html, "*.html")
    again = checkout.nbutils("book", "--suite", "smoke", "--size", "small", "--cpu")
    assert again.returncode == 0, again.stderr
    assert (measured(checkout), executed(checkout), modified(checkout.html, "*.html")) == before
    assert "stand-in-moe-small" in again.stdout, "it still says what was measured"


def test_a_change_in_the_registry_makes_pages_again_and_measures_nothing_again(built: Any, tmp_path: Path) -> None:
    checkout = built.checkout.copy(tmp_path / "changed")
    device = checkout.root / "data" / "devices" / "strix-halo.yaml"
    text = device.read_text(encoding="utf-8")
    assert "note: Upper end of what the chip may be set to." in text
    device.write_text(
        text.replace("note: Upper end of what the chip may be set to.", "note: Power <script>document.title = 1</script> as sold."), encoding="utf-8"
    )
    before, pages_before = measured(checkout), executed(checkout)
    again = checkout.nbutils("book", "--suite", "smoke", "--size", "small", "--cpu")
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert measured(checkout) == before
    assert executed(checkout)["devices/strix-halo.ipynb"] > pages_before["devices/strix-halo.ipynb"]
    assert executed(checkout)["devices/dgx-spark.ipynb"] == pages_before["devices/dgx-spark.ipynb"], "it does not read that figure"
    assert executed(checkout)["proof/proof.ipynb"] == pages_before["proof/proof.ipynb"], "it does not read the device"
    page = (checkout.html / "book" / "devices" / "strix-halo.html").read_text(encoding="utf-8")
    assert "Power &lt;script&gt;document.title = 1&lt;/script&gt; as sold." in page
    assert "<script>document.title" not in page


def test_what_is_published_has_no_page_of_this_machine(built: Any, tmp_path: Path) -> None:
    """Also right after a local build in the same folder, which is how somebody would do it."""
    checkout = built.checkout.copy(tmp_path / "published")
    done = checkout.nbutils("book", "--published")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Measured on this machine" not in done.stdout
    assert [page for page in pages(checkout) if page.startswith("here/")] == []
    for page in checkout.html.rglob("*.html"):
        assert "this-machine" not in page.read_text(encoding="utf-8"), page.name
    assert checkout.git("status", "--porcelain") == ""


def test_a_chapter_that_fails_fails_the_build_with_one_line(built: Any, tmp_path: Path) -> None:
    checkout = built.checkout.copy(tmp_path / "failing")
    chapter = checkout.root / "book" / "methods.md"
    chapter.write_text(
        "---\njupytext:\n  text_representation: {extension: .md, format_name: myst}\n"
        "kernelspec: {display_name: Python 3, language: python, name: python3}\n---\n"
        "# Methods\n\n```{code-cell} ipython3\nfrom nbutils import registry\nregistry.load_device('dgx-sprak')\n```\n",
        encoding="utf-8",
    )
    done = checkout.nbutils("book", "--published")
    assert done.returncode == 1
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("nbutils: ")]
    assert "jupyter-book stopped with code" in line
    assert "methods" in line or "dgx-sprak" in line, line
    assert "Traceback" not in done.stderr


def test_clean_removes_what_was_built_and_keeps_what_was_measured(built: Any, tmp_path: Path) -> None:
    checkout = built.checkout.copy(tmp_path / "cleaned")
    gone = build.clean(checkout.root)
    assert {p.name for p in gone} == {"_build", "articles", "devices", "here", "proof"}
    assert len(records.list_records(checkout.home / "records")) == 6
    assert checkout.git("status", "--porcelain") == ""
    assert build.clean(checkout.root) == []
