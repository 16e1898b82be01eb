// The settings of a new training job, and its estimated time and memory. Must not know the jobs that exist.

import { post } from "./api.js";
import { el, setChildren } from "./dom.js";
import { approximateDuration, bytes, count } from "./format.js";
import { samplePromptsField } from "./samples.js";

/** A persona name made from a file's name. */
const nameFromFile = (filename) => filename.toLowerCase().replace(/\.[a-z]+$/, "").replace(/[^a-z0-9_-]+/g, "-").replace(/^[-_]+|-+$/g, "").slice(0, 64);

/** The form for an uploaded `dataset`. `onStart` receives the job that it created; `onDelete` deletes the dataset. */
export function trainingForm({ studio, dataset, onStart, onDelete }) {
  const name = el("input", { name: "suffix", required: true, pattern: "[a-z0-9][a-z0-9_\\-]{0,63}", title: "1 to 64 characters: a-z, 0-9, - and _, starting with a letter or a digit", autocomplete: "off", value: nameFromFile(dataset.filename), oninput: describeName });
  const nameHint = el("small");
  const publish = el("input", { type: "checkbox", checked: true });
  const publishHint = el("span.muted");
  const start = el("select", { name: "model" }, el("option", { value: studio.base }, `the base (${studio.base})`), studio.personas.map((persona) => el("option", { value: persona }, persona)));
  const samplePrompts = samplePromptsField();
  const plan = el("p.plan", { role: "status" });
  const numberField = (label, field, attributes, hint) => el("label.field", {}, label, el("input", { type: "number", name: field, ...attributes }), hint && el("small", {}, hint));
  const form = el(
    "form.stack.tight",
    { onsubmit: submit, onchange: () => updatePlan() },
    el(
      "div.settings",
      {},
      el("label.field", {}, "Persona name", name, nameHint),
      numberField("Epochs", "n_epochs", { min: 1, max: 100, value: "3" }, "Passes over the rows. More passes fit the rows better and take longer."),
      samplePrompts.field,
    ),
    samplePrompts.ownPrompts,
    el("label.check", {}, publish, el("span", {}, "Publish when training is done", publishHint)),
    el(
      "details",
      {},
      el("summary", {}, "More settings"),
      el(
        "div.settings",
        {},
        el("label.field", {}, "Start from", start),
        numberField("Batch size (rows)", "batch_size", { min: 1, max: 256, value: "8" }),
        numberField("Rank (adapter size)", "rank", { min: 1, max: 256, value: "16" }),
        numberField("Learning rate multiplier", "learning_rate_multiplier", { min: 0.01, max: 100, step: 0.01, value: "1" }),
      ),
    ),
    el(
      "details",
      {},
      el("summary", {}, "System prompt and eval gate"),
      el("label.field", {}, "System prompt (used for rows that have none, and stored with the persona)", el("textarea", { name: "system_prompt", rows: 2 })),
      el("p.small.muted", {}, "After training, the adapter answers held-out rows. It is published only if the answers meet these thresholds."),
      el(
        "div.settings",
        {},
        el("label.field", {}, "Answers must match (regular expression)", el("input", { name: "any_of", placeholder: "(?i)thank you" })),
        el("label.field", {}, "Answers must not match", el("input", { name: "none_of" })),
        numberField("Min share of answers that comply", "tone_at_least", { min: 0, max: 1, step: 0.01, value: "0.95" }),
        numberField("Min share of correct identifiers", "copied_at_least", { min: 0, max: 1, step: 0.01, placeholder: "0.90" }),
      ),
    ),
    plan,
    el("div.row", {}, el("button.primary", { type: "submit" }, "Start training"), el("button.plain", { type: "button", onclick: onDelete }, "Delete this file")),
  );

  function describeName() {
    const exists = studio.personas.includes(name.value);
    publishHint.textContent = exists ? " – otherwise you can compare it with the current version and publish it later" : " – otherwise you can read its answers and publish it later";
    nameHint.textContent = !name.value ? "Clients use this name in requests." : exists ? `Adds a new version of ${name.value}.` : "Creates a new persona. Clients use this name in requests.";
  }

  /** The request of the job, for its plan and for its start. */
  function jobRequest() {
    const data = new FormData(form);
    // The rank of an existing adapter cannot change.
    const numbers = ["n_epochs", "batch_size", "learning_rate_multiplier"].concat(start.value === studio.base ? ["rank"] : []);
    const hyperparameters = Object.fromEntries(numbers.filter((field) => data.get(field) !== "").map((field) => [field, Number(data.get(field))]));
    const request = { model: data.get("model"), training_file: dataset.id, hyperparameters, ...samplePrompts.requestFields() };
    if (data.get("suffix")) request.suffix = data.get("suffix");
    if (data.get("system_prompt").trim()) request.system_prompt = data.get("system_prompt").trim();
    if (dataset.pairs) request.method = { type: "dpo" };
    const gate = {};
    if (data.get("any_of")) gate.any_of = [data.get("any_of")];
    if (data.get("none_of")) gate.none_of = [data.get("none_of")];
    if (gate.any_of || gate.none_of) gate.tone_at_least = Number(data.get("tone_at_least"));
    if (data.get("copied_at_least")) gate.copied_at_least = Number(data.get("copied_at_least"));
    if (Object.keys(gate).length) request.gate = gate;
    if (!publish.checked) request.publish = false;
    return request;
  }

  function showError(error) {
    plan.className = "plan error";
    plan.textContent = error.message;
  }

  let latest = 0;
  /** Shows the estimate for the current settings; only the newest request's response counts. */
  async function updatePlan() {
    latest += 1;
    const own = latest;
    try {
      const estimate = await post("/v1/fine_tuning/plan", jobRequest());
      if (own !== latest) return;
      const steps = estimate.plan?.steps ?? estimate.plan?.adapters?.[0]?.steps;
      const facts = [
        steps !== undefined && count(steps, "step"),
        count(estimate.tokens, "token"),
        `${bytes(estimate.memory_needed)} of memory`,
      ].filter(Boolean);
      plan.className = "plan";
      setChildren(plan, el("b", {}, estimate.seconds ? `About ${approximateDuration(estimate.seconds)}` : "The time is known after the first steps"), `: ${facts.join(", ")}. The server keeps answering requests during training; they have priority.`);
    } catch (error) {
      if (own === latest) showError(error);
    }
  }

  async function submit(event) {
    event.preventDefault();
    try {
      await onStart(await post("/v1/fine_tuning/jobs", jobRequest()));
    } catch (error) {
      showError(error);
    }
  }

  describeName();
  // The estimate is shown before anything is started. The first one takes longest, because the server measures a step for it.
  setChildren(plan, "Measuring one training step to estimate the time …");
  updatePlan();
  return form;
}
