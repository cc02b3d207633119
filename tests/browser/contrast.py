"""Words that are hard to read, as a script for a page."""

from __future__ import annotations

__all__ = ["faint"]

#: Contrast by WCAG 2.2: relative luminance, and 4.5 to 1 for text of ordinary size.
_FAINT = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parts(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const v = c[i] / 255;
    return sum + weight * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  }, 0);
  const words = [...document.querySelectorAll('SELECTOR')]
    .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return words.filter((e) => {
    const style = getComputedStyle(e);
    const [a, b] = [light(parts(e instanceof SVGElement ? style.fill : style.color)), light(ground(e))].sort((x, y) => x - y);
    return (b + 0.05) / (a + 0.05) < 4.5;
  }).map((e) => `${e.tagName} ${e.textContent.trim().slice(0, 40)}`);
}"""


def faint(selector: str) -> str:
    """The script that names each element of ``selector`` whose own words stand out too little from what is behind them."""
    return _FAINT.replace("SELECTOR", selector)
