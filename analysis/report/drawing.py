"""What pictures share: how names and colours become readable, and how templates are filled in."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """Fill in a template of this folder."""
    environment = Environment(
        loader=PackageLoader("onnx_prune.analysis.report", "."),
        autoescape=True,  # names in a model are anybody's text
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def ink(fill: str) -> str:
    """Black or white, whichever can be read on ``fill``."""
    red, green, blue = (int(fill[i : i + 2], 16) for i in (1, 3, 5))
    return "#ffffff" if 0.3 * red + 0.59 * green + 0.11 * blue < 155 else "#1c2430"


def short(text: str, length: int) -> str:
    """The beginning and the end of a long name, which says more than either."""
    if len(text) <= length:
        return text
    return f"{text[: length // 3]}…{text[-(length - length // 3 - 1) :]}"
