// Runs evaluations: which personas, on which rows, and the progress of those that run. Must not know how results are shown.

import { DATASET_FILES, get, post, uploadDataset } from "./api.js";
import { el, errorState, fileInput, setChildren, toast } from "./dom.js";
import { count, number } from "./format.js";

/** How often a running evaluation is polled, in milliseconds. */
const POLL = 1000;
/** The default number of rows: enough for a first impression, and quick. */
const DEFAULT_ROWS = "20";
/** The most personas of one evaluation. */
const MAX_PERSONAS = 8;
/** Where this tab stores the ids of running evaluations, so that it follows them again after a reload. */
const STORED_IDS = "lory.evaluations";

const isActive = ({ status }) => ["queued", "running"].includes(status);
const route = (id) => `/v1/evaluations/${encodeURIComponent(id)}`;

const storedIds = () => JSON.parse(sessionStorage.getItem(STORED_IDS) ?? "[]");
const forgetId = (id) => sessionStorage.setItem(STORED_IDS, JSON.stringify(storedIds().filter((one) => one !== id)));
const storeId = (id) => {
  forgetId(id);
  sessionStorage.setItem(STORED_IDS, JSON.stringify([...storedIds(), id]));
};

/** The form and the running evaluations. `onResult` receives the result of each evaluation that succeeds. */
export function evaluationRun(studio, onResult) {
  /** The selected personas and versions; null until the view is shown. */
  let selected = null;
  let versions = [];
  const chips = el("div.chips", { role: "group", "aria-label": "Personas to evaluate" });
  const versionSelect = el("select", { "aria-label": "Add a version", onchange: addVersion });
  const rows = el("select", { name: "file" });
  const maxRows = el("input", { type: "number", name: "max_rows", min: 1, max: 500, placeholder: "100", value: DEFAULT_ROWS });
  const file = fileInput({ accept: DATASET_FILES }, ([chosen]) => upload(chosen));
  const problem = el("p.error", { role: "alert", hidden: true });
  const form = el(
    "form.stack.tight",
    { onsubmit: submit },
    el("div.row", {}, chips, versionSelect),
    el(
      "div.settings",
      {},
      el("label.field", {}, "Rows", rows),
      el("button", { type: "button", onclick: () => file.click() }, "Choose file"),
      file,
      el("label.field", {}, "Max rows per persona", maxRows),
      el("span.spacer"),
      el("button.primary", { type: "submit" }, "Run evaluation"),
    ),
    problem,
  );
  const list = el("div.stack.tight", { "aria-live": "polite" });
  const root = el(
    "section.panel.stack",
    {},
    el("h2", {}, "Run an evaluation"),
    el("p.intro", {}, "Measures how well each persona keeps its tone on questions that training did not see, and how much the tones differ. The server keeps answering requests; they have priority."),
    form,
    list,
  );
  /** Evaluation id -> its card. */
  const cards = new Map();

  async function show() {
    selected ??= new Set(studio.personas.slice(0, MAX_PERSONAS));
    for (const id of storedIds()) if (!cards.has(id)) get(route(id)).then(follow, (error) => error.status === 404 && forgetId(id));
    try {
      versions = (await get("/v1/personas")).data.flatMap((one) => one.versions.map((version) => `${one.name}@${version}`));
    } catch {
      // Listing versions requires an admin key; the bare names are enough.
    }
    showPersonas();
    await loadFiles();
  }

  /* Form */

  function showPersonas() {
    const names = [...studio.personas, ...[...selected].filter((name) => name.includes("@"))];
    setChildren(chips, names.map(personaChip));
    const others = versions.filter((name) => !selected.has(name));
    versionSelect.hidden = !others.length;
    setChildren(versionSelect, el("option", { value: "" }, "Add a version …"), others.map((name) => el("option", { value: name }, name)));
  }

  function personaChip(name) {
    const toggle = () => {
      if (!selected.delete(name)) selected.add(name);
      chip.setAttribute("aria-pressed", selected.has(name));
    };
    const chip = el("button.chip", { type: "button", "aria-pressed": selected.has(name), style: { "--swatch": studio.color(name) }, onclick: toggle }, el("i.dot"), name);
    return chip;
  }

  function addVersion() {
    if (versionSelect.value) selected.add(versionSelect.value);
    showPersonas();
  }

  async function loadFiles() {
    const before = rows.value;
    let files = [];
    try {
      files = (await get("/v1/files")).data.filter((one) => !one.pairs);
    } catch {
      // A key without permission to train has no files.
    }
    setChildren(rows, el("option", { value: "" }, "each persona's own"), files.map((one) => el("option", { value: one.id }, `${one.filename} (${count(one.rows, "row")})`)));
    rows.value = files.some((one) => one.id === before) ? before : "";
  }

  async function upload(chosen) {
    showProblem(null);
    try {
      const uploaded = await uploadDataset(chosen);
      await loadFiles();
      rows.value = uploaded.id;
    } catch (error) {
      showProblem(`${chosen.name} was rejected: ${error.message}`);
    }
  }

  function showProblem(message) {
    problem.hidden = message === null;
    problem.textContent = message ?? "";
  }

  async function submit(event) {
    event.preventDefault();
    const personas = [...selected];
    if (!personas.length) {
      showProblem("Select at least one persona above.");
      return;
    }
    showProblem(null);
    const request = { personas };
    if (rows.value) request.file = rows.value;
    if (maxRows.value) request.max_rows = Number(maxRows.value);
    try {
      follow(await post("/v1/evaluations", request));
    } catch (error) {
      showProblem(error.message);
    }
  }

  /* Running evaluations */

  /** Adds a card and polls the evaluation until it ends. */
  function follow(evaluation) {
    const { id } = evaluation;
    if (cards.has(id)) return;
    storeId(id);
    const names = evaluation.personas.join(", ");
    const tag = el("span.tag");
    const bar = el("progress", { max: 1, "aria-label": "Progress" });
    const cancelButton = el("button.small", { type: "button", onclick: cancel }, "Cancel");
    const progressLine = el("span.small.muted.numeric");
    const dismissButton = el("button.plain.small", { type: "button", hidden: true, onclick: dismiss }, "Dismiss");
    const message = el("div");
    const node = el("article.evaluation.stack.tight", {}, el("div.row", {}, el("b", {}, names), tag, progressLine, el("span.spacer"), cancelButton, dismissButton), bar, message);
    cards.set(id, node);
    list.prepend(node);

    function draw(latest) {
      const active = isActive(latest);
      tag.textContent = latest.status;
      tag.className = `tag ${{ running: "warn", succeeded: "on", failed: "off" }[latest.status] ?? ""}`;
      const { done, of } = latest.progress ?? {};
      bar.value = latest.status === "succeeded" ? 1 : of ? done / of : 0;
      progressLine.textContent = of && active ? `${number(done)} of ${number(of)}` : "";
      cancelButton.hidden = bar.hidden = !active;
      if (active) {
        setTimeout(poll, POLL);
        return;
      }
      forgetId(id);
      dismissButton.hidden = false;
      setChildren(message, latest.error && el("p.error", {}, latest.error.message));
      if (latest.status !== "succeeded") return;
      dismiss();
      toast(`Evaluated ${names}`);
      // The server keeps a limited number of results, so an old one may be gone.
      if (latest.result) onResult(latest.result);
    }

    function dismiss() {
      node.remove();
      cards.delete(id);
    }

    async function poll() {
      try {
        draw(await get(route(id)));
      } catch (error) {
        if (error.status === 0) setTimeout(poll, POLL * 5);
        else setChildren(message, errorState(error, () => (setChildren(message), poll())));
      }
    }

    async function cancel() {
      cancelButton.disabled = true;
      try {
        await post(`${route(id)}/cancel`);
      } catch (error) {
        toast(error.message, "bad");
      }
      cancelButton.disabled = false;
    }
    draw(evaluation);
  }

  return { root, show };
}
