// The lines that ask again what is on the screen, for a shell and for Python.

/** Quotes a text for a POSIX shell. */
const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** JSON as a Python literal. */
function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map((one) => literal(one)).join(", ")}]`;
  if (typeof value === "object") {
    const pairs = Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`);
    return `{${pairs.join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** A curl line for a body of `/generate`. */
export function curl(body, keyed) {
  const bearer = keyed ? ` \\\n  -H "Authorization: Bearer $LORY_KEY"` : "";
  return `curl -s ${location.origin}/generate${bearer} \\\n  -H 'Content-Type: application/json' \\\n  -d ${shell(JSON.stringify(body))}`;
}

/** The same for Python's standard library. */
export function python(body, keyed) {
  const bearer = keyed ? `, "Authorization": "Bearer " + os.environ["LORY_KEY"]` : "";
  return [
    `import json${keyed ? ", os" : ""}, urllib.request`,
    "",
    `body = ${literal(body)}`,
    `request = urllib.request.Request(`,
    `    "${location.origin}/generate", json.dumps(body).encode(),`,
    `    {"Content-Type": "application/json"${bearer}})`,
    `print(json.load(urllib.request.urlopen(request))["response"])`,
  ].join("\n");
}
