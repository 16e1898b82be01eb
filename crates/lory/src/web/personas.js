// Personas: who is there, in which versions, and what is done with them: publish, go back, canary, remove, add an adapter.

import { get, json } from "./api.js";
import { confirm, copy, el, empty, failure, put, scroller, toast } from "./dom.js";
import { bytes, number, short, when } from "./format.js";
import { read, sum } from "./metrics.js";
import { uploader } from "./upload.js";

/** A server without a home keeps no evaluations; who may not see them may not see the rest either. */
const nothing = () => ({ data: [] });

const path = (name, ...rest) => ["/v1/personas", encodeURIComponent(name), ...rest].join("/");

export function personas(studio) {
  const list = el("div.stack");
  const search = el("input", { type: "search", placeholder: "Find", "aria-label": "Find a persona", oninput: filter });
  const add = uploader({ names: () => known.map((one) => one.name), done: refresh });
  const tools = el("div.stack", { hidden: true }, add.root, el("div.row", {}, search, el("span.grow"), el("button", { type: "button", onclick: refresh }, "Look again")));
  const root = el(
    "section.view",
    { "aria-label": "Personas" },
    el("h1", {}, "Personas"),
    el("p.lead", {}, "A persona is what a request names. Each of its versions is an adapter, known by the hash of its content, with its settings; the name alone means the current one."),
    tools,
    list,
  );
  let known = [];
  const open = new Set();

  async function refresh() {
    let answer;
    try {
      const [listed, pool, counters, measured] = await Promise.all([get("/v1/personas"), get("/v1/lora_adapters"), read(), get("/v1/evaluations").catch(nothing)]);
      // The newest come first, and the first of an adapter is kept.
      const evaluations = new Map();
      for (const { time, missed, personas } of measured.data) {
        for (const { name, adapter } of personas) {
          if (adapter && !evaluations.has(adapter)) evaluations.set(adapter, { time, missed: missed.filter((line) => line.startsWith(`${name}: `)) });
        }
      }
      answer = { listed, pool: new Map(pool.data.map((one) => [one.sha256, one])), counters, evaluations };
    } catch (error) {
      tools.hidden = true;
      known = [];
      const title = error.status === 403 ? "Personas are for keys with admin rights" : undefined;
      put(list, failure(title ? Object.assign(new Error(error.message), { title }) : error, refresh));
      return;
    }
    tools.hidden = false;
    known = answer.listed.data;
    const aliases = Object.entries(answer.listed.aliases);
    put(
      list,
      known.length
        ? known.map((persona) => card(persona, answer))
        : empty("No personas yet", "Drop a PEFT folder or a zip of one above, or train a tone."),
      aliases.length > 0 && el("p.small.soft", {}, "Other names: ", aliases.map(([alias, target]) => `${alias} → ${target}`).join(", ")),
    );
    filter();
  }

  function filter() {
    const wanted = search.value.trim().toLowerCase();
    for (const node of list.querySelectorAll("[data-name]")) node.hidden = !node.dataset.name.includes(wanted);
  }

  function residency(adapter, pool) {
    const one = adapter && pool.get(adapter.sha256);
    if (!adapter) return el("span.tag", {}, "no adapter");
    if (one?.resident) return el("span.tag.on", { title: `${bytes(one.bytes)} in memory, in use by ${one.leases}` }, "in memory");
    return el("span.tag", {}, one?.loading ? "being read" : "on disk");
  }

  function card(persona, answer) {
    const { name, source, version, versions, adapter, canary } = persona;
    const own = (labels) => labels.persona === name;
    const body = el("div.versions");
    const more = el(
      "details.panel.persona",
      {
        "data-name": name,
        ontoggle: () => {
          if (!more.open) {
            open.delete(name);
          } else if (!body.childNodes.length) {
            open.add(name);
            details(persona, body, answer);
          }
        },
      },
      el(
        "summary",
        {},
        el("i.dot", { style: { "--tone": studio.tone(name) } }),
        el("h2", {}, name),
        el("span.tag", {}, `version ${version}`),
        source === "folder" ? el("span.tag.warn", {}, "in the folder, not published") : versions.length > 1 && el("span.tag", {}, `${versions.length} versions`),
        canary && el("span.tag.warn", {}, `canary: ${canary.percent}% to ${canary.version}`),
        residency(adapter, answer.pool),
        el("span.grow"),
        el("span.small.soft.num", {}, `${number(sum(answer.counters, "lory_requests_total", own))} requests`),
        el("span.about.soft", {}, persona.description || "No description"),
      ),
      body,
    );
    if (open.has(name)) more.open = true;
    return more;
  }

  async function details(persona, body, answer) {
    const { name, source } = persona;
    put(body, el("p.soft", {}, "Reading its versions …"));
    let versions;
    let history = { data: [] };
    try {
      versions = (await get(path(name, "versions"))).data;
      if (source === "registry") history = await get(path(name, "history"));
    } catch (error) {
      put(body, failure(error, () => details(persona, body, answer)));
      return;
    }
    const current = versions.find((one) => one.current);
    put(
      body,
      scroller(
        `Versions of ${persona.name}`,
        el(
          "table",
          {},
          el("thead", {}, el("tr", {}, ["Version", "Adapter", "Size"].map((title) => el("th", { scope: "col" }, title)), ["Memory", "What to do"].map((title) => el("th", { scope: "col" }, el("span.hide-from-sight", {}, title))))),
          el("tbody", {}, versions.map((one) => row(persona, one, answer))),
        ),
      ),
      settings(current),
      el(
        "div.row",
        {},
        source === "folder" && el("button", { type: "button", onclick: () => publish(name) }, "Publish it"),
        source === "registry" && versions.length > 1 && !persona.canary && el("button", { type: "button", onclick: () => canary(persona, versions) }, "Canary …"),
        persona.canary && el("button", { type: "button", onclick: () => change("DELETE", path(name, "canary"), undefined, "The canary has ended") }, "End the canary"),
        source === "registry" && el("button", { type: "button", onclick: () => remove(name) }, "Remove the persona …"),
      ),
      history.data.length > 0 &&
        el(
          "details",
          {},
          el("summary", {}, "What happened to it"),
          el("ol.history", {}, [...history.data].reverse().map((entry) => el("li", {}, el("span.soft.num", {}, when(entry.time)), " ", entry.summary))),
        ),
    );
  }

  function row(persona, one, answer) {
    const { name } = persona;
    const pinned = `${name}@${one.version}`;
    return el(
      "tr",
      {},
      el(
        "td",
        {},
        el("b.num", {}, one.version),
        " ",
        one.current && el("span.tag.on", {}, "current"),
        one.canary && el("span.tag.warn", {}, `canary ${one.canary.percent}%`),
        one.shadow && el("span.tag", {}, `shadow ${one.shadow.percent}%`),
        one.aliases.map((alias) => el("span.tag", {}, `also ${alias}`)),
        el("div.small.soft", {}, one.published ? when(one.published) : "in the folder"),
      ),
      el(
        "td",
        {},
        one.adapter
          ? el("button.plain.small.mono", { type: "button", title: `${one.adapter.sha256}\nCopy`, onclick: () => copy(one.adapter.sha256, "The hash is copied") }, short(one.adapter.sha256))
          : el("span.soft", {}, "none"),
        evaluation(one.adapter && answer.evaluations.get(one.adapter.sha256)),
        one.adapter?.base_sha256 && el("div.small.soft", { title: one.adapter.base_sha256 }, `base ${short(one.adapter.base_sha256)}`),
      ),
      el("td.num", {}, one.adapter ? bytes(one.adapter.bytes) : "–"),
      el("td", {}, residency(one.adapter, answer.pool)),
      el(
        "td",
        {},
        el(
          "div.row.end",
          {},
          el("a.button", { href: `#listen/${encodeURIComponent(pinned)}` }, "Listen"),
          !one.current && el("button.small", { type: "button", onclick: () => makeCurrent(name, one.version) }, "Make current"),
          !one.current && el("button.small", { type: "button", onclick: () => remove(pinned) }, "Remove …"),
        ),
      ),
    );
  }

  /** What `lory eval` said of an adapter when it was last asked. */
  const evaluation = (found) =>
    found &&
    el(
      "div.small",
      {},
      el(`span.tag.${found.missed.length ? "off" : "on"}`, { title: found.missed.join("\n") || "every threshold was met" }, found.missed.length ? `missed ${found.missed.length}` : "gate passed"),
      el("span.soft", {}, ` measured ${when(found.time)}`),
    );

  function settings(version) {
    const { settings } = version;
    const facts = [
      ["System prompt", settings.system_prompt],
      ["Variables", settings.variables && Object.keys(settings.variables).join(", ")],
      ["Sampling", settings.sampling && Object.entries(settings.sampling).map(([key, value]) => `${key} ${value}`).join(", ")],
      ["Most tokens", settings.max_new_tokens],
      ["Stop strings", settings.stop?.map((one) => JSON.stringify(one)).join(", ")],
      ["Scale", settings.scale],
    ].filter(([, value]) => value !== undefined && value !== null && value !== "");
    return el("dl.facts", {}, facts.map(([what, value]) => [el("dt", {}, what), el("dd", {}, String(value))]));
  }

  /** Makes a change, says so, and looks again. */
  async function change(method, where, body, said) {
    try {
      await json(method, where, body);
      toast(said);
    } catch (error) {
      toast(error.message, "bad");
    }
    await Promise.all([refresh(), studio.refresh().catch(() => {})]);
  }

  const publish = (name) => change("POST", path(name, "versions"), { from_folder: true }, `${name} is published`);

  async function makeCurrent(name, version) {
    const sure = await confirm({
      title: `Make ${name}@${version} the current version?`,
      body: el("p", {}, `From the next request on, ${name} means version ${version}. Requests under way end with theirs.`),
      yes: "Make it current",
    });
    if (sure) await change("POST", path(name, "rollback"), { version }, `${name} is version ${version}`);
  }

  async function canary({ name }, versions) {
    const others = versions.filter((one) => !one.current);
    const share = el("input", { type: "range", name: "percent", min: 1, max: 100, value: "10", oninput: () => put(said, `${share.value}%`) });
    const said = el("b.num", {}, "10%");
    const form = await confirm({
      title: `A canary of ${name}`,
      body: [
        el("p", {}, "A part of the requests for the bare name goes to another version. The same question always goes the same way."),
        el("label.field", {}, "Version", el("select", { name: "version" }, others.map((one) => el("option", { value: one.version }, `${name}@${one.version}`)))),
        el("label.field", {}, el("span", {}, "Share of the requests: ", said), share),
      ],
      yes: "Start the canary",
    });
    if (!form) return;
    const part = { version: Number(form.get("version")), percent: Number(form.get("percent")) };
    await change("PUT", path(name, "canary"), part, `${part.percent}% of ${name} goes to version ${part.version}`);
  }

  async function remove(name) {
    const form = await confirm({
      title: `Remove ${name}?`,
      body: [
        el("p", {}, name.includes("@") ? "This version cannot be asked any more, and its number is not given again." : "All of its versions go, and with them what clients ask by this name. Requests under way end with theirs."),
        el("label.field", {}, `Type ${name} to go on`, el("input", { name: "name", autocomplete: "off", required: true, pattern: name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), title: `Type ${name}` })),
      ],
      yes: "Remove",
      danger: true,
    });
    if (form?.get("name") === name) await change("DELETE", path(name), undefined, `${name} is removed`);
  }

  return { root, show: refresh };
}
