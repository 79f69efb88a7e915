"""The page a person reads, and the rows and JSON it shares with the command line."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from graphs import Graph
from onnx_prune import Model, PruneResult, prune
from onnx_prune.analysis.report.html import render
from onnx_prune.analysis.report.summary import Row, analysis_json, cost_json, cost_rows, pin_reasons

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "br", "link", "img"}


@pytest.fixture(scope="module")
def result() -> PruneResult:
    g = Graph()
    x = g("Conv", g.input(1, 3, 4, 4), g.weight(8, 3, 1, 1, name=HOSTILE))
    return prune(Model(g.model(g.conv(x, 8, 2)).proto), ratio=0.5, criterion="l2", recover="none")


def page(result: PruneResult, title: str = "title", holds: bool = True) -> str:
    rows = cost_rows(result.before, result.after)
    return render(title, rows, "as measured", holds, result.analysis, result.plan, ["a note"])


def test_the_page_is_well_formed_and_complete(result: PruneResult) -> None:
    text = page(result)
    stack: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in VOID:
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    Check().feed(text)
    assert stack == []
    assert f"{result.before.params:,}" in text and f"{result.after.params:,}" in text
    assert result.plan.digest in text and "a note" in text and "4 of 8" in text
    assert all(pin.reason.replace("'", "&#39;") in text for pin in result.analysis.pins)


def test_names_from_a_model_are_text_and_nothing_else(result: PruneResult) -> None:
    assert HOSTILE not in page(result, title=HOSTILE)


def test_a_broken_certificate_is_marked(result: PruneResult) -> None:
    assert 'class="certificate broken"' in page(result, holds=False)
    assert 'class="certificate broken"' not in page(result)


def test_the_page_loads_nothing_from_elsewhere(result: PruneResult) -> None:
    assert not re.search(r"https?://|<script|<link|url\(", page(result))


def test_the_same_run_gives_the_same_page(result: PruneResult) -> None:
    assert page(result) == page(result)


def test_rows() -> None:
    assert Row.counts("n", 2000, 500) == Row("n", "2,000", "500", "-75.0%")
    assert Row.counts("n", 0, 0).change == ""
    assert Row.shares("a", 0.99, 0.985).change == "-0.50 points"
    assert Row.times("t", 2.0, 1.0) == Row("t", "2.000 ms", "1.000 ms", "× 0.50")


def test_json_holds_plain_values_only(result: PruneResult) -> None:
    data = cost_json(result.before, result.after) | analysis_json(result.analysis)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["params"] == {"before": result.before.params, "after": result.after.params}
    assert data["groups"][0]["members"] and data["pinned"][0]["reason"]


def test_reasons_are_counted(result: PruneResult) -> None:
    assert sum(count for _, count in pin_reasons(result.analysis)) == len(result.analysis.pins)
