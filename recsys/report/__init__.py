"""One self-contained HTML page: words, tables and plots, in a file that can be mailed.

    page = Page(title="A sweep", sections=(Section(heading="Results", blocks=(Text("All of it."), table, plot)),))
    storage.write_text(folder / "index.html", page.html())

Styles are inline and plots are SVG: no script, no network. Everything given is text and is escaped. Not here: what a
page says, which its callers know.
"""

from recsys.report.page import Block, Code, Page, Section, Table, Text, bytes_text
from recsys.report.plot import Axis, Plot, Point, Series

__all__ = ["Axis", "Block", "Code", "Page", "Plot", "Point", "Section", "Series", "Table", "Text", "bytes_text"]
