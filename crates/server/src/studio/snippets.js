// Code that sends the request on the screen: a curl command and a Python script. Must not know elements.

/** Quotes a text for a POSIX shell. */
const shellQuote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** JSON as a Python literal. */
function pythonLiteral(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map((item) => pythonLiteral(item)).join(", ")}]`;
  if (typeof value === "object") {
    const pairs = Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${pythonLiteral(item)}`);
    return `{${pairs.join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** A curl command for a body of `/generate`. `withKey` adds a header that reads `LORY_KEY`. */
export function curl(body, withKey) {
  const bearer = withKey ? ` \\\n  -H "Authorization: Bearer $LORY_KEY"` : "";
  return `curl -s ${location.origin}/generate${bearer} \\\n  -H 'Content-Type: application/json' \\\n  -d ${shellQuote(JSON.stringify(body))}`;
}

/** The same request with Python's standard library. */
export function python(body, withKey) {
  const bearer = withKey ? `, "Authorization": "Bearer " + os.environ["LORY_KEY"]` : "";
  return [
    `import json${withKey ? ", os" : ""}, urllib.request`,
    "",
    `body = ${pythonLiteral(body)}`,
    `request = urllib.request.Request(`,
    `    "${location.origin}/generate", json.dumps(body).encode(),`,
    `    {"Content-Type": "application/json"${bearer}})`,
    `print(json.load(urllib.request.urlopen(request))["response"])`,
  ].join("\n");
}
