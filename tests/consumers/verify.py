"""Runs the Python snippets of docs/webhook.md on deliveries.

Each line of the input is {"secret", "headers", "body"}; each line of the output has what each snippet says.
"""

import json
import pathlib
import re
import sys

page = pathlib.Path(__file__).parents[2] / "docs" / "webhook.md"
snippets = []
for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
    if "def verify(" not in code:
        continue
    names = {}
    exec(compile(code, str(page), "exec"), names)
    snippets.append(names["verify"])

for line in sys.stdin:
    case = json.loads(line)
    body = case["body"].encode()
    print(json.dumps([bool(verify(case["secret"], case["headers"], body)) for verify in snippets]))
