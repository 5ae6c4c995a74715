"""Runs the whole consumer of docs/webhook.md."""

import pathlib
import re

page = pathlib.Path(__file__).parents[2] / "docs" / "webhook.md"
section = page.read_text().split("## A whole consumer\n")[1]
code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
exec(compile(code, str(page), "exec"), {})
