"""What tests of pages in a browser share: where things lie on the screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Open = Callable[..., Any]  # opens a page's text in a browser; see the fixture `opened`

BOXES = """all => all.map(one => { const box = one.getBoundingClientRect();
  return [box.left, box.top, box.right, box.bottom]; })"""


def boxes(tab: Any, selector: str) -> list[list[float]]:
    return tab.locator(selector).evaluate_all(BOXES)
