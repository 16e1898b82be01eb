// Runs a client's checks and prints their results as one line of JSON: null for a pass, else what went wrong.
// Arguments: the server's address, the model, the folder with the clients.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [address, MODEL, folder] = process.argv.slice(2);
const BASE_URL = `${address}/v1`;
const QUESTION = "Where is my order 12345? It should have come on Monday.";
// What the tool answers.
const STATUS = "Order 12345 is on its way and arrives on Friday.";

const require = createRequire(pathToFileURL(`${folder}/`));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const version = (name) => `${name} ${JSON.parse(readFileSync(`${folder}/node_modules/${name}/package.json`)).version}`;

async function run(version, checks) {
  const results = {};
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
      results[name] = null;
    } catch (error) {
      console.error(error);
      results[name] = String(error).slice(0, 300);
    }
  }
  console.log(JSON.stringify({ version, results }));
}

export { BASE_URL, MODEL, QUESTION, STATUS, load, run, version };
