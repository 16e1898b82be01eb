// Sampled answers: while a job trains, it answers the same prompts again and again. The form field that chooses the prompts, and the
// history of answers that the user can step through. Must not know the rest of the form or of the job.

import { get } from "./api.js";
import { diff, similarity } from "./diff.js";
import { el, setChildren } from "./dom.js";
import { number } from "./format.js";

/** The most prompts of a job. */
const MAX_PROMPTS = 4;

/** The form's parts: the choice, the user's own prompts, and `requestFields`, their part of the job's request. */
export function samplePromptsField() {
  const choice = el(
    "select",
    { name: "samples", onchange: applyChoice },
    el("option", { value: "held-out" }, "held-out questions"),
    el("option", { value: "own" }, "your own prompts"),
    el("option", { value: "none" }, "none"),
  );
  const ownPrompts = el("textarea", { rows: MAX_PROMPTS, "aria-label": "Prompts, one per line", placeholder: "Where is my order #12345?", oninput: validate });
  const hint = el("small");
  const field = el("label.field", {}, "Sample prompts during training", choice, hint);
  const written = () => ownPrompts.value.split("\n").map((line) => line.trim()).filter(Boolean);

  function applyChoice() {
    ownPrompts.hidden = choice.value !== "own";
    hint.textContent = {
      "held-out": "Up to three, so that you can read how the tone develops.",
      own: `Up to ${MAX_PROMPTS}, one per line.`,
      none: "You see only the losses.",
    }[choice.value];
    validate();
    if (!ownPrompts.hidden) ownPrompts.focus();
  }

  function validate() {
    const count = written().length;
    let message = "";
    if (!ownPrompts.hidden && count === 0) message = "Write a prompt, or choose held-out questions";
    if (!ownPrompts.hidden && count > MAX_PROMPTS) message = `There are ${count} prompts; at most ${MAX_PROMPTS} are allowed, one per line`;
    ownPrompts.setCustomValidity(message);
  }

  applyChoice();
  return {
    field,
    ownPrompts,
    /** No field lets the server choose held-out questions. */
    requestFields: () => (choice.value === "held-out" ? {} : { sample_prompts: choice.value === "none" ? [] : written() }),
  };
}

/** The answers of the job `id` by step: those before training on the left, those of the chosen step, at first the newest, on the right. */
export function sampleHistory(id) {
  const slider = el("input", { type: "range", min: 0, max: 0, step: 1, value: "0", "aria-label": "Training step of the answers", oninput: showStep });
  const back = el("button.small", { type: "button", "aria-label": "Earlier step", onclick: () => moveBy(-1) }, "◂");
  const forward = el("button.small", { type: "button", "aria-label": "Later step", onclick: () => moveBy(1) }, "▸");
  const position = el("b.numeric");
  const legend = el("p.small.muted");
  const list = el("div.stack");
  const controls = el("div.step-controls", {}, back, slider, forward, position);
  const node = el("details.samples", { hidden: true, open: true }, el("summary", {}, "Answers during training"), controls, legend, list);
  let drawn = "";
  let steps = [];
  /** For each prompt the elements that change with the step: the heading, and one answer for each step. */
  let changing = [];

  /** Reads the answers; whether the request succeeded. `over` means that the job has ended. */
  async function read(over) {
    let samples;
    try {
      samples = (await get(`/v1/fine_tuning/jobs/${id}/samples`)).data;
    } catch {
      return false;
    }
    // A job that had already ended starts folded.
    if (node.hidden && over) node.open = false;
    node.hidden = !samples.length;
    const state = JSON.stringify(samples);
    if (state === drawn) return true;
    drawn = state;
    // Moves on to the newest step, unless the user has gone back.
    const atNewest = Number(slider.value) >= steps.length - 1;
    steps = [...new Set(samples.map((sample) => sample.step))].sort((a, b) => a - b);
    draw(samples);
    slider.max = String(Math.max(steps.length - 1, 0));
    if (atNewest) slider.value = slider.max;
    showStep();
    return true;
  }

  function draw(samples) {
    const byPrompt = new Map();
    for (const { prompt, step, answer } of samples) {
      if (!byPrompt.has(prompt)) byPrompt.set(prompt, new Map());
      byPrompt.get(prompt).set(step, answer);
    }
    const [first, ...later] = steps;
    changing = [];
    setChildren(
      list,
      [...byPrompt].map(([prompt, answers]) => {
        const heading = el("h4.small.muted");
        // The answers of all steps overlap, so the area is as high as the longest one and nothing moves from step to step.
        const pages = later.map((step, index) => el("p.quote", {}, highlightNew(answers, index === 0 ? null : later[index - 1], step)));
        const pending = el("p.quote.muted", {}, "The first answer comes after some training.");
        changing.push({ heading, pages });
        return el(
          "section.sample",
          {},
          el("p.prompt-text", {}, prompt),
          el(
            "div.columns",
            {},
            el("div", {}, el("h4.small.muted", {}, first === 0 ? "Before training" : `Step ${number(first)}`), el("p.quote", {}, answerText(answers.get(first)))),
            el("div", {}, heading, el("div.step-answers", {}, pages.length ? pages : pending)),
          ),
        );
      }),
    );
  }

  const answerText = (text) => (text === undefined ? "–" : text || "(empty answer)");

  /** The answer at `step`, with the words highlighted that the answer at `before` did not have. */
  function highlightNew(answers, before, step) {
    const now = answers.get(step);
    const previous = answers.get(before);
    if (!now || !previous) return answerText(now);
    const runs = diff(previous, now);
    if (similarity(runs) === 1) return now;
    return runs
      .filter((run) => run.in !== "left")
      .map(({ text, in: where }) => {
        const word = text.trimEnd();
        return where === "right" ? [el("mark", {}, word), text.slice(word.length)] : text;
      });
  }

  function showStep() {
    // The first step is always on the left; the slider covers the steps after it.
    const index = Math.max(Number(slider.value), steps.length > 1 ? 1 : 0);
    slider.min = steps.length > 1 ? "1" : "0";
    const step = steps[index];
    const newest = index === steps.length - 1;
    for (const { heading, pages } of changing) {
      heading.textContent = index === 0 ? "After training" : `After step ${number(step)}`;
      for (const [page, answer] of pages.entries()) answer.toggleAttribute("data-shown", page === index - 1);
    }
    controls.hidden = steps.length < 3;
    position.textContent = steps.length > 1 ? `step ${number(step)}${newest ? " (newest)" : ""}` : "";
    slider.setAttribute("aria-valuetext", position.textContent);
    back.disabled = index <= 1;
    forward.disabled = newest;
    legend.textContent = index > 1 ? `Highlighted: words that are new since step ${number(steps[index - 1])}.` : "";
  }

  function moveBy(count) {
    slider.value = String(Number(slider.value) + count);
    showStep();
  }

  return { node, read };
}
