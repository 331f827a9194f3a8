"""The figures of the tutorials in frames of their own, by which the style of the site finds them."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

IMAGE = re.compile(r'<img [^>]*class ?= ?"[^"]*sphx-glr-single-img[^"]*"[^>]*>')


def frame(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = IMAGE.sub(r'<div class="figure-frame">\g<0></div>', context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", frame)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
