"""``lightning-sim report``: runs as a table in the terminal, as rows for scripts, and as one page for the browser."""

from lightning_sim.report.page import report_page
from lightning_sim.report.summary import Row, summarize

__all__ = ["Row", "report_page", "summarize"]
