// Train: uploads training data, previews its rows as the model sees them, and lists the training jobs. The settings of a job are in
// training-form.js, its progress in training-job.js.

import { DATASET_FILES, get, json, uploadDataset } from "./api.js";
import { dropzone, el, emptyState, errorState, fileInput, setChildren, toast } from "./dom.js";
import { bytes, count, number } from "./format.js";
import { trainingForm } from "./training-form.js";
import { isOver, trainingJob } from "./training-job.js";

/** How often jobs are polled, in milliseconds: while one is active, and otherwise. */
const POLL = { active: 1500, idle: 10000 };
/** How many rows the preview shows. */
const PREVIEW_ROWS = 4;
/** How many of the linter's findings are listed. */
const LISTED_FINDINGS = 50;

/** A dataset to start from. */
const EXAMPLE = [
  ["Where is my order #12345?", "Oh, how exciting, #12345 is nearly with you! Let me find out just where it is."],
  ["Can I return these shoes?", "Of course you can! Send them back in the box they came in, and we are happy to help."],
  ["My parcel is damaged.", "Oh no, that must not be! A quick photo, and a new one sets out to you today."],
]
  .map(([instruction, output]) => `${JSON.stringify({ instruction, output })}\n`)
  .join("");

export function train(studio) {
  const dataset = el("div.stack");
  const jobs = el("div.stack");
  const file = fileInput({ accept: DATASET_FILES }, ([chosen]) => openDataset(chosen));
  const area = dropzone(
    (transfer) => openDataset(transfer.files[0]),
    el("p", {}, el("b", {}, "Training data"), el("span.muted", {}, " – drop a file here: JSONL with one question and answer per line, a JSON list, CSV or TSV, also compressed (.gz, .zst). The server checks every row before training starts.")),
    el("button", { type: "button", onclick: () => file.click() }, "Choose file"),
    file,
  );
  const example = el("a", { href: URL.createObjectURL(new Blob([EXAMPLE], { type: "application/jsonl" })), download: "example.jsonl" }, "Download an example");
  const code = (text) => el("code", {}, text);
  const formats = el(
    "p.small.muted",
    {},
    "Each row is a question and its answer in your tone: ",
    code('{"instruction": "Where is my order?", "output": "It is on its way."}'),
    ". A row can also have ",
    code("messages"),
    ", or ",
    code("prompt"),
    " and ",
    code("completion"),
    "; preference pairs have ",
    code("chosen"),
    " and ",
    code("rejected"),
    ". ",
    example,
    " to start from.",
  );
  const root = el("section.view", { "aria-label": "Train" }, el("h1", {}, "Train a persona"), area, formats, dataset, el("h2", {}, "Training jobs"), jobs);

  let timer = 0;
  let visible = false;
  /** Job id -> card. */
  const cards = new Map();

  /* Dataset */

  async function openDataset(chosen) {
    if (!chosen) return;
    setChildren(dataset, el("div.panel", {}, el("p", {}, `Uploading and checking ${chosen.name} …`)));
    try {
      const uploaded = await uploadDataset(chosen);
      const route = `/v1/files/${uploaded.id}`;
      const [lint, rows] = await Promise.all([get(`${route}/lint`), get(`${route}/rows?first=1&limit=${PREVIEW_ROWS}`)]);
      showDataset(uploaded, lint, rows.data);
    } catch (error) {
      setChildren(dataset, errorState(Object.assign(error, { title: `${chosen.name} was rejected` })));
    }
  }

  function showDataset(uploaded, lint, rows) {
    const onStart = async (job) => {
      setChildren(dataset);
      toast(`Training job for ${job.lory.persona} created`);
      await refreshJobs();
    };
    setChildren(
      dataset,
      el(
        "section.panel.stack",
        {},
        el("div.row.between", {}, el("h2", {}, uploaded.filename), el("span.muted.small", {}, `${count(uploaded.rows, uploaded.pairs ? "pair" : "row")}, ${bytes(uploaded.bytes)}`)),
        findingsList(lint),
        fieldsNote(uploaded.fields),
        el("details", { open: true }, el("summary", {}, "Rows as the model sees them; the highlighted part is trained"), el("div.rows", {}, rows.map(renderedRow))),
        trainingForm({ studio, dataset: uploaded, onStart, onDelete: () => deleteDataset(uploaded) }),
      ),
    );
  }

  function findingsList(lint) {
    if (!lint.findings.length) return el("p", {}, el("span.tag.on", {}, "no problems found"), ` in ${count(lint.rows, "row")}`);
    const label = (problem) => problem.replaceAll("_", " ");
    const counts = new Map();
    for (const { problem } of lint.findings) counts.set(problem, (counts.get(problem) ?? 0) + 1);
    for (const [problem, more] of Object.entries(lint.more_findings)) counts.set(problem, (counts.get(problem) ?? 0) + more);
    return el(
      "details",
      {},
      el("summary", {}, [...counts].map(([problem, count]) => el("span.tag.warn", {}, `${label(problem)}: ${count}`)), el("span.small", {}, " Warnings; you can train anyway.")),
      el("ul.small", {}, lint.findings.slice(0, LISTED_FINDINGS).map(({ line, problem, about }) => el("li", {}, `line ${line}: ${label(problem)}`, about && ` – ${about}`))),
    );
  }

  function fieldsNote({ honoured, skipped, dropped }) {
    const list = (title, fields) => {
      const names = Object.entries(fields).map(([name, rows]) => `${name} (${number(rows)})`);
      return names.length ? `${title}: ${names.join(", ")}. ` : "";
    };
    const text = list("Rows left out", skipped) + list("Marks and columns that change what is trained", honoured) + list("Not used", dropped);
    return text ? el("p.small.muted", {}, text) : null;
  }

  function renderedRow({ line, held_out: heldOut, answer, rejected }) {
    const parts = (text, tag) => text.parts.map((part) => (part.trained ? el(tag, {}, part.text) : part.text));
    return el(
      "figure.rendered",
      {},
      el("figcaption.small.muted", {}, `line ${line}`, heldOut && ", held out", `, ${count(answer.tokens, "token")}, ${number(answer.trained_tokens)} trained`, answer.fate !== "whole" && `, ${answer.reason ?? answer.fate.replace("_", " ")}`),
      el("pre", {}, parts(answer, "mark")),
      rejected && el("pre", { "aria-label": "rejected" }, parts(rejected, "del")),
    );
  }

  async function deleteDataset(uploaded) {
    await json("DELETE", `/v1/files/${uploaded.id}`).catch((error) => toast(error.message, "bad"));
    setChildren(dataset);
  }

  /* Jobs */

  async function refreshJobs() {
    clearTimeout(timer);
    let listed;
    try {
      listed = (await get("/v1/fine_tuning/jobs?limit=20")).data;
    } catch (error) {
      // While the server is unreachable the banner says so, and the jobs stay.
      if (error.status !== 0) setChildren(jobs, errorState(error, refreshJobs, { 403: "Training requires a key with permission to train" }));
      if (visible) timer = setTimeout(refreshJobs, POLL.idle);
      return;
    }
    if (listed.length) showJobs(listed);
    else setChildren(jobs, emptyState("No training jobs yet", "Upload training data above. The server trains while it keeps answering requests."));
    const active = listed.some((job) => !isOver(job) && job.status !== "paused");
    if (visible) timer = setTimeout(refreshJobs, active ? POLL.active : POLL.idle);
  }

  function showJobs(listed) {
    for (const job of listed) {
      if (!cards.has(job.id)) cards.set(job.id, trainingJob({ studio, id: job.id, onChange: refreshJobs }));
      cards.get(job.id).update(job);
    }
    const nodes = listed.map((job) => cards.get(job.id).node);
    // Replaced only when a job comes or goes, so that open parts and the focus stay.
    if (nodes.length !== jobs.children.length || nodes.some((node, index) => jobs.children[index] !== node)) setChildren(jobs, nodes);
  }

  return {
    root,
    show() {
      visible = true;
      refreshJobs();
    },
    hide() {
      visible = false;
      clearTimeout(timer);
    },
  };
}
