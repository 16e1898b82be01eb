// Personas: the list of personas and their versions, and the actions on them: publish, make current, canary, remove, add an adapter.

import { get, json, personaPath } from "./api.js";
import { adapterUpload } from "./adapter-upload.js";
import { copyText, el, emptyState, errorState, openDialog, scrollable, setChildren, toast } from "./dom.js";
import { bytes, count, relativeTime, shortHash } from "./format.js";
import { readMetrics, sum } from "./metrics.js";

/** A server without a home folder keeps no evaluations; the list is shown without them. */
const noEvaluations = () => ({ data: [] });

export function personas(studio) {
  const list = el("div.stack");
  const search = el("input", { type: "search", placeholder: "Search", "aria-label": "Search personas", oninput: filter });
  const upload = adapterUpload({ personaNames: () => listed.map((one) => one.name), onPublish: refresh });
  const toolbar = el("div.stack", { hidden: true }, upload.root, el("div.row", {}, search, el("span.spacer"), el("button", { type: "button", onclick: refresh }, "Refresh")));
  const root = el(
    "section.view",
    { "aria-label": "Personas" },
    el("h1", {}, "Personas"),
    el("p.intro", {}, "A persona is the name that a request uses. Each version of a persona is one adapter, identified by the hash of its content, with its settings. The bare name means the current version."),
    toolbar,
    list,
  );
  let listed = [];
  /** The names whose details are open, so that they stay open after a refresh. */
  const open = new Set();

  async function refresh() {
    let state;
    try {
      const [personas, pool, metrics, evaluations] = await Promise.all([get("/v1/personas"), get("/v1/lora_adapters"), readMetrics(), get("/v1/evaluations").catch(noEvaluations)]);
      state = { personas, pool: new Map(pool.data.map((one) => [one.sha256, one])), metrics, evaluations: newestByAdapter(evaluations.data) };
    } catch (error) {
      toolbar.hidden = true;
      listed = [];
      setChildren(list, errorState(error, refresh, { 403: "Managing personas requires an admin key" }));
      return;
    }
    toolbar.hidden = false;
    listed = state.personas.data;
    const aliases = Object.entries(state.personas.aliases);
    setChildren(
      list,
      listed.length ? listed.map((persona) => card(persona, state)) : emptyState("No personas yet", "Drop a PEFT adapter folder or a zip of one above, or train a persona."),
      aliases.length > 0 && el("p.small.muted", {}, "Aliases: ", aliases.map(([alias, target]) => `${alias} → ${target}`).join(", ")),
    );
    filter();
  }

  /** Adapter hash -> its newest evaluation, as the time and the thresholds that it missed. The server lists the newest first. */
  function newestByAdapter(evaluations) {
    const newest = new Map();
    for (const { time, missed, personas } of evaluations) {
      for (const { name, adapter } of personas) {
        if (adapter && !newest.has(adapter)) newest.set(adapter, { time, missed: missed.filter((line) => line.startsWith(`${name}: `)) });
      }
    }
    return newest;
  }

  function filter() {
    const wanted = search.value.trim().toLowerCase();
    for (const node of list.querySelectorAll("[data-name]")) node.hidden = !node.dataset.name.includes(wanted);
  }

  function memoryTag(adapter, pool) {
    if (!adapter) return el("span.tag", {}, "no adapter");
    const entry = pool.get(adapter.sha256);
    if (entry?.resident) return el("span.tag.on", { title: `${bytes(entry.bytes)} in memory, used by ${count(entry.leases, "request")}` }, "in memory");
    return el("span.tag", {}, entry?.loading ? "loading" : "on disk");
  }

  function card(persona, state) {
    const { name, source, version, versions, adapter, canary } = persona;
    const body = el("div.versions");
    const node = el(
      "details.panel.persona",
      {
        "data-name": name,
        ontoggle: () => {
          if (!node.open) {
            open.delete(name);
          } else if (!body.childNodes.length) {
            open.add(name);
            showDetails(persona, body, state);
          }
        },
      },
      el(
        "summary",
        {},
        el("i.dot", { style: { "--swatch": studio.color(name) } }),
        el("h2", {}, name),
        el("span.tag", {}, `version ${version}`),
        source === "folder" ? el("span.tag.warn", { title: "It exists in the server's personas folder only" }, "not published") : versions.length > 1 && el("span.tag", {}, `${versions.length} versions`),
        canary && el("span.tag.warn", {}, `canary: ${canary.percent}% to version ${canary.version}`),
        memoryTag(adapter, state.pool),
        el("span.spacer"),
        el("span.small.muted.numeric", {}, count(sum(state.metrics, "lory_requests_total", (labels) => labels.persona === name), "request")),
        el("span.about.muted", {}, persona.description || "No description"),
      ),
      body,
    );
    if (open.has(name)) node.open = true;
    return node;
  }

  async function showDetails(persona, body, state) {
    const { name, source } = persona;
    setChildren(body, el("p.muted", {}, "Loading versions …"));
    let versions;
    let history = { data: [] };
    try {
      versions = (await get(personaPath(name, "versions"))).data;
      if (source === "registry") history = await get(personaPath(name, "history"));
    } catch (error) {
      setChildren(body, errorState(error, () => showDetails(persona, body, state)));
      return;
    }
    setChildren(
      body,
      scrollable(
        `Versions of ${name}`,
        el(
          "table",
          {},
          el("thead", {}, el("tr", {}, ["Version", "Adapter", "Size"].map((title) => el("th", { scope: "col" }, title)), ["Memory", "Actions"].map((title) => el("th", { scope: "col" }, el("span.visually-hidden", {}, title))))),
          el("tbody", {}, versions.map((version) => versionRow(persona, version, state))),
        ),
      ),
      settingsList(versions.find((version) => version.current)),
      el(
        "div.row",
        {},
        source === "folder" && el("button", { type: "button", onclick: () => publish(name) }, "Publish"),
        source === "registry" && versions.length > 1 && !persona.canary && el("button", { type: "button", onclick: () => startCanary(name, versions) }, "Start a canary …"),
        persona.canary && el("button", { type: "button", onclick: () => change("DELETE", personaPath(name, "canary"), undefined, "Canary ended") }, "End canary"),
        source === "registry" && el("button", { type: "button", onclick: () => remove(name) }, "Remove persona …"),
      ),
      history.data.length > 0 &&
        el(
          "details",
          {},
          el("summary", {}, "History"),
          el("ol.history", {}, [...history.data].reverse().map((entry) => el("li", {}, el("span.muted.numeric", {}, relativeTime(entry.time)), " ", entry.summary))),
        ),
    );
  }

  function versionRow({ name }, version, state) {
    const { adapter } = version;
    const pinned = `${name}@${version.version}`;
    return el(
      "tr",
      {},
      el(
        "td",
        {},
        el("b.numeric", {}, version.version),
        " ",
        version.current && el("span.tag.on", {}, "current"),
        version.canary && el("span.tag.warn", {}, `canary ${version.canary.percent}%`),
        version.shadow && el("span.tag", {}, `shadow ${version.shadow.percent}%`),
        version.aliases.map((alias) => el("span.tag", {}, `alias ${alias}`)),
        el("div.small.muted", {}, version.published ? relativeTime(version.published) : "in the personas folder"),
      ),
      el(
        "td",
        {},
        adapter
          ? el("button.plain.small.mono", { type: "button", title: `${adapter.sha256}\nCopy`, onclick: () => copyText(adapter.sha256, "Hash copied") }, shortHash(adapter.sha256))
          : el("span.muted", {}, "none"),
        evaluationTag(adapter && state.evaluations.get(adapter.sha256)),
        adapter?.base_sha256 && el("div.small.muted", { title: adapter.base_sha256 }, `base ${shortHash(adapter.base_sha256)}`),
      ),
      el("td.numeric", {}, adapter ? bytes(adapter.bytes) : "–"),
      el("td", {}, memoryTag(adapter, state.pool)),
      el(
        "td",
        {},
        el(
          "div.row.end",
          {},
          el("a.button", { href: `#playground/${encodeURIComponent(pinned)}` }, "Try it"),
          !version.current && el("button.small", { type: "button", onclick: () => makeCurrent(name, version.version) }, "Make current"),
          !version.current && el("button.small", { type: "button", onclick: () => remove(pinned) }, "Remove …"),
        ),
      ),
    );
  }

  /** The result of an adapter's newest evaluation. */
  const evaluationTag = (evaluation) =>
    evaluation &&
    el(
      "div.small",
      {},
      evaluation.missed.length
        ? el("span.tag.off", { title: evaluation.missed.join("\n") }, `eval gate: ${evaluation.missed.length} missed`)
        : el("span.tag.on", { title: "Every threshold was met" }, "eval gate passed"),
      el("span.muted", {}, ` evaluated ${relativeTime(evaluation.time)}`),
    );

  function settingsList({ settings }) {
    const facts = [
      ["System prompt", settings.system_prompt],
      ["Variables", settings.variables && Object.keys(settings.variables).join(", ")],
      ["Sampling", settings.sampling && Object.entries(settings.sampling).map(([name, value]) => `${name} ${value}`).join(", ")],
      ["Max tokens", settings.max_new_tokens],
      ["Stop strings", settings.stop?.map((text) => JSON.stringify(text)).join(", ")],
      ["Scale", settings.scale],
    ].filter(([, value]) => value !== undefined && value !== null && value !== "");
    return el("dl.facts", {}, facts.map(([label, value]) => [el("dt", {}, label), el("dd", {}, String(value))]));
  }

  /* Actions */

  /** Sends a change, shows `message`, and reads the list again. */
  async function change(method, route, body, message) {
    try {
      await json(method, route, body);
      toast(message);
    } catch (error) {
      toast(error.message, "bad");
    }
    await Promise.all([refresh(), studio.refresh().catch(() => {})]);
  }

  const publish = (name) => change("POST", personaPath(name, "versions"), { from_folder: true }, `Published ${name}`);

  async function makeCurrent(name, version) {
    const confirmed = await openDialog({
      title: `Make ${name}@${version} the current version?`,
      body: el("p", {}, `New requests for ${name} use version ${version}. Running requests finish with the version they started with.`),
      confirm: "Make current",
    });
    if (confirmed) await change("POST", personaPath(name, "rollback"), { version }, `${name} now uses version ${version}`);
  }

  async function startCanary(name, versions) {
    const others = versions.filter((version) => !version.current);
    const shown = el("b.numeric", {}, "10%");
    const share = el("input", { type: "range", name: "percent", min: 1, max: 100, value: "10", oninput: () => setChildren(shown, `${share.value}%`) });
    const form = await openDialog({
      title: `Start a canary for ${name}`,
      body: [
        el("p", {}, "A share of the requests for the bare name goes to another version. The same prompt always goes to the same version."),
        el("label.field", {}, "Version", el("select", { name: "version" }, others.map(({ version }) => el("option", { value: version }, `${name}@${version}`)))),
        el("label.field", {}, el("span", {}, "Share of requests: ", shown), share),
      ],
      confirm: "Start canary",
    });
    if (!form) return;
    const canary = { version: Number(form.get("version")), percent: Number(form.get("percent")) };
    await change("PUT", personaPath(name, "canary"), canary, `${canary.percent}% of ${name} requests go to version ${canary.version}`);
  }

  /** Removes a version (`customer@2`) or a whole persona, after the user has typed its name. */
  async function remove(name) {
    const consequence = name.includes("@")
      ? "Requests can no longer use this version. Its number is not used again."
      : "This removes all versions of the persona. Requests for this name will fail. Running requests finish.";
    const form = await openDialog({
      title: `Remove ${name}?`,
      body: [
        el("p", {}, consequence),
        el("label.field", {}, `Type ${name} to confirm`, el("input", { name: "name", autocomplete: "off", required: true, pattern: name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), title: `Type ${name}` })),
      ],
      confirm: "Remove",
      danger: true,
    });
    if (form?.get("name") === name) await change("DELETE", personaPath(name), undefined, `Removed ${name}`);
  }

  return { root, show: refresh };
}
