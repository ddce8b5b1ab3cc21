"""What shows histories: the terminal's table, the page for the browser, and pictures of whole runs."""

from lightning_sim.views.conditions import conditions_figure
from lightning_sim.views.page import report_page
from lightning_sim.views.pictures import comparison_figure, correlation_figure, interchange_figure
from lightning_sim.views.summary import Row, summarize

__all__ = [
    "Row",
    "comparison_figure",
    "conditions_figure",
    "correlation_figure",
    "interchange_figure",
    "report_page",
    "summarize",
]
