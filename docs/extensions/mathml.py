"""Mathematics as MathML, converted while building: no script, no font, no request of the reader."""

from collections.abc import Callable
from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

# As fences they keep to what they enclose; latex2mathml gives them the spaces of operators.
BARS = {r"\lvert": r"\left|", r"\rvert": r"\right|", r"\lVert": r"\left\|", r"\rVert": r"\right\|"}
OPEN = {"inline": '<span class="math">', "block": '<div class="math-block">'}
CLOSE = {"inline": "</span>", "block": "</div>"}


def mathml(latex: str, display: str) -> str:
    """Return a formula as MathML with its source beside it, for those who hear or copy it."""
    fenced = latex
    for bar, fence in BARS.items():
        fenced = fenced.replace(bar, fence)
    formula = convert(fenced, display=display)
    spoken = f'<math alttext="{escape(latex, quote=True)}" '
    return OPEN[display] + formula.replace("<math ", spoken, 1) + CLOSE[display]


def _visit(display: str) -> Callable[[Any, nodes.Element], None]:
    def visit(translator: Any, node: nodes.Element) -> None:
        translator.body.append(mathml(" ".join(node.astext().split()), display))
        raise nodes.SkipNode

    return visit


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_visit("inline"), None), (_visit("block"), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
