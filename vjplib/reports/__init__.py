"""Reports of a run of the verifier: JSON with a schema, Markdown, JUnit XML, a page for a browser, and what changed."""

from vjplib.reports.changes import Change as Change
from vjplib.reports.changes import changes as changes
from vjplib.reports.html import write_html as write_html
from vjplib.reports.junit import write_junit as write_junit
from vjplib.reports.markdown import write_markdown as write_markdown
from vjplib.reports.runs import Run as Run
from vjplib.reports.runs import read as read
from vjplib.reports.runs import write_json as write_json
