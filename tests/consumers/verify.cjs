// As verify.py, for the JavaScript snippets.
const fs = require("node:fs");
const path = require("node:path");

const page = fs.readFileSync(path.join(__dirname, "..", "..", "docs", "webhook.md"), "utf8");
const library = path.join(process.argv[2], "node", "node_modules", "standardwebhooks");
const load = (name) => require(name === "standardwebhooks" ? library : name);
const snippets = [...page.matchAll(/```javascript\n(.*?)```/gs)].map(
  ([, code]) => new Function("require", `${code}\nreturn verify;`)(load),
);

for (const line of fs.readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const { secret, headers, body } = JSON.parse(line);
  console.log(JSON.stringify(snippets.map((verify) => verify(secret, headers, body))));
}
