// An evaluation on demand: who is measured, on which rows, and how far it is. What comes out is shown by evaluate.js.

import { get, json, post } from "./api.js";
import { el, failure, put, toast } from "./dom.js";
import { number } from "./format.js";

/** How often one that is under way is looked at, in milliseconds. */
const EVERY = 1000;
/** How many rows are asked at first: enough for a first look, soon done. */
const ROWS = "20";
/** The most personas of one evaluation. */
const MOST = 8;
/** Where this tab keeps the ids of those under way, so that a reload follows them again. */
const KEPT = "lory.evaluations";

const UNDER_WAY = ["queued", "running"];

/** The form and what is under way. `done` is called with the result of each one that has succeeded. */
export function measuring(studio, done) {
  let chosen = null;
  let versions = [];
  const chips = el("div.chips", { role: "group", "aria-label": "Who is measured" });
  const more = el("select", { "aria-label": "Add a version", onchange: add });
  const rows = el("select", { name: "file" });
  const most = el("input", { type: "number", name: "max_rows", min: 1, max: 500, placeholder: "100", value: ROWS });
  const file = el("input.hide-from-sight", { type: "file", accept: ".jsonl,.json,application/jsonl", tabindex: -1, "aria-hidden": "true", onchange: (event) => upload(event.target.files[0]) });
  const wrong = el("p.wrong", { role: "alert", hidden: true });
  const go = el("button.primary", { type: "submit" }, "Measure");
  const form = el(
    "form.stack.tight",
    { onsubmit: start },
    el("div.row", {}, chips, more),
    el(
      "div.settings",
      {},
      el("label.field", {}, "On these rows", rows),
      el("button", { type: "button", onclick: () => file.click() }, "Choose a file"),
      file,
      el("label.field", {}, "Rows of each, at most", most),
      el("span.grow"),
      go,
    ),
    wrong,
  );
  const list = el("div.stack.tight", { "aria-live": "polite" });
  const root = el(
    "section.panel.stack",
    {},
    el("h2", {}, "Measure"),
    el("p.lead", {}, "How well each tone is spoken, on questions that training did not see, and how the tones differ. Requests are answered meanwhile, and go first."),
    form,
    list,
  );
  /** Those under way, by their id. */
  const cards = new Map();

  const where = (id) => `/v1/evaluations/${encodeURIComponent(id)}`;
  const kept = () => JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
  const keep = (id, under) => sessionStorage.setItem(KEPT, JSON.stringify([...kept().filter((one) => one !== id), ...(under ? [id] : [])]));

  async function show() {
    chosen ??= new Set(studio.personas.slice(0, MOST));
    for (const id of kept()) if (!cards.has(id)) get(where(id)).then(follow, (error) => error.status === 404 && keep(id, false));
    try {
      versions = (await get("/v1/personas")).data.flatMap((one) => one.versions.map((version) => `${one.name}@${version}`));
    } catch {
      // The names alone do.
    }
    speakers();
    await files();
  }

  function speakers() {
    const all = [...studio.personas, ...[...chosen].filter((name) => name.includes("@"))];
    put(
      chips,
      all.map((name) => {
        const chip = el("button.chip", { type: "button", "aria-pressed": chosen.has(name), onclick: () => toggle(name, chip) }, el("i.dot"), name);
        chip.style.setProperty("--tone", studio.tone(name));
        return chip;
      }),
    );
    const others = versions.filter((name) => !chosen.has(name));
    more.hidden = !others.length;
    put(more, el("option", { value: "" }, "Add a version …"), others.map((name) => el("option", { value: name }, name)));
  }

  function toggle(name, chip) {
    if (!chosen.delete(name)) chosen.add(name);
    chip.setAttribute("aria-pressed", chosen.has(name));
  }

  function add() {
    if (more.value) chosen.add(more.value);
    speakers();
  }

  async function files() {
    const before = rows.value;
    let there = [];
    try {
      there = (await get("/v1/files")).data.filter((one) => !one.pairs);
    } catch {
      // A key that may not train has no files.
    }
    put(rows, el("option", { value: "" }, "each persona's own"), there.map((one) => el("option", { value: one.id }, `${one.filename} (${number(one.rows)} rows)`)));
    rows.value = there.some((one) => one.id === before) ? before : "";
  }

  async function upload(given) {
    file.value = "";
    if (!given) return;
    const sent = new FormData();
    sent.append("purpose", "fine-tune");
    sent.append("file", given, given.name);
    say(null);
    try {
      const kept = await json("POST", "/v1/files", sent);
      await files();
      rows.value = kept.id;
    } catch (error) {
      say(`${given.name} is not taken: ${error.message}`);
    }
  }

  function say(what) {
    wrong.hidden = what === null;
    wrong.textContent = what ?? "";
  }

  async function start(event) {
    event.preventDefault();
    const personas = [...chosen];
    if (!personas.length) {
      say("Choose at least one persona, above.");
      return;
    }
    say(null);
    const asked = { personas };
    if (rows.value) asked.file = rows.value;
    if (most.value) asked.max_rows = Number(most.value);
    try {
      follow(await post("/v1/evaluations", asked));
    } catch (error) {
      say(error.message);
    }
  }

  /** Shows how far one is, until it is over. */
  function follow(evaluation) {
    const { id } = evaluation;
    if (cards.has(id)) return;
    keep(id, true);
    const who = evaluation.personas.join(", ");
    const tag = el("span.tag");
    const bar = el("progress", { max: 1, "aria-label": "Progress" });
    const cancel = el("button.small", { type: "button", onclick: stop }, "Cancel");
    const line = el("span.small.soft.num");
    const dismiss = el("button.plain.small", { type: "button", hidden: true, onclick: forget }, "Forget");
    const what = el("div");
    const node = el("article.measuring.stack.tight", {}, el("div.row", {}, el("b", {}, who), tag, line, el("span.grow"), cancel, dismiss), bar, what);
    cards.set(id, node);
    list.prepend(node);

    function draw(now) {
      tag.textContent = now.status;
      tag.className = `tag ${{ running: "warn", succeeded: "on", failed: "off" }[now.status] ?? ""}`;
      const { done: count, of } = now.progress ?? {};
      bar.value = now.status === "succeeded" ? 1 : of ? count / of : 0;
      line.textContent = of && UNDER_WAY.includes(now.status) ? `${number(count)} of ${number(of)}` : "";
      cancel.hidden = bar.hidden = !UNDER_WAY.includes(now.status);
      if (UNDER_WAY.includes(now.status)) {
        setTimeout(look, EVERY);
        return;
      }
      keep(id, false);
      dismiss.hidden = false;
      put(what, now.error && el("p.wrong", {}, now.error.message));
      if (now.status !== "succeeded") return;
      forget();
      toast(`${who}: measured`);
      // Of many results the oldest are not kept.
      if (now.result) done(now.result);
    }

    function forget() {
      node.remove();
      cards.delete(id);
    }

    async function look() {
      try {
        draw(await get(where(id)));
      } catch (error) {
        if (error.status === 0) setTimeout(look, EVERY * 5);
        else put(what, failure(error, () => (put(what), look())));
      }
    }

    async function stop() {
      cancel.disabled = true;
      try {
        await post(`${where(id)}/cancel`);
      } catch (error) {
        toast(error.message, "bad");
      }
      cancel.disabled = false;
    }
    draw(evaluation);
  }

  return { root, show };
}
