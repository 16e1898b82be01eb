// What a job answers to the same prompts while it trains: the part of the form that says which prompts, and the part of a job's card
// that steps through the answers.

import { get } from "./api.js";
import { alike, diff } from "./diff.js";
import { el, put } from "./dom.js";
import { number } from "./format.js";

/** The most prompts of a job. */
const MOST = 4;

/** The parts of the form: the choice, the prompts of one's own, and `asked`, what goes into the request. */
export function promptsField() {
  const which = el(
    "select",
    { name: "samples", onchange: choose },
    el("option", { value: "held-out" }, "questions held out from the rows"),
    el("option", { value: "own" }, "prompts of your own"),
    el("option", { value: "none" }, "nothing"),
  );
  const own = el("textarea", { rows: MOST, "aria-label": "Prompts, one a line", placeholder: "Where is my order #12345?", oninput: check });
  const about = el("small");
  const field = el("label.field", {}, "While it trains, it answers", which, about);
  const written = () => own.value.split("\n").map((line) => line.trim()).filter(Boolean);

  function choose() {
    own.hidden = which.value !== "own";
    about.textContent = {
      "held-out": "Up to three, so that you can read how the tone comes.",
      own: `Up to ${MOST}, one a line.`,
      none: "Only the losses will tell how it goes.",
    }[which.value];
    check();
    if (!own.hidden) own.focus();
  }

  function check() {
    const count = written().length;
    const wrong = own.hidden ? "" : count === 0 ? "Write a prompt, or choose the held-out questions" : count > MOST ? `These are ${count} prompts; at most ${MOST}, one a line` : "";
    own.setCustomValidity(wrong);
  }

  choose();
  return {
    field,
    own,
    /** The field of a job's request; nothing where the server is to choose. */
    asked: () => (which.value === "held-out" ? {} : { sample_prompts: which.value === "none" ? [] : written() }),
  };
}

/** The answers of the job `id`, step by step: the base's beside those of the step that is chosen, at first the newest. */
export function timeline(id) {
  const slider = el("input", { type: "range", min: 0, max: 0, step: 1, value: "0", "aria-label": "Step of the answers", oninput: turn });
  const back = el("button.small", { type: "button", "aria-label": "An earlier step", onclick: () => go(-1) }, "◂");
  const on = el("button.small", { type: "button", "aria-label": "A later step", onclick: () => go(1) }, "▸");
  const at = el("b.num");
  const legend = el("p.small.soft");
  const list = el("div.stack");
  const controls = el("div.stepping", {}, back, slider, on, at);
  const node = el("details.samples", { hidden: true, open: true }, el("summary", {}, "What it answers, step by step"), controls, legend, list);
  let drawn = "";
  let steps = [];
  /** For each prompt the parts that change with the step. */
  let shown = [];

  /** Reads the answers, and says whether that went well; `over` says that no more will come. */
  async function read(over) {
    let samples;
    try {
      samples = (await get(`/v1/fine_tuning/jobs/${id}/samples`)).data;
    } catch {
      return false;
    }
    // Of a job that is over, other things come first.
    if (node.hidden && over) node.open = false;
    node.hidden = !samples.length;
    const key = JSON.stringify(samples);
    if (key === drawn) return true;
    drawn = key;
    const follows = Number(slider.value) >= steps.length - 1;
    steps = [...new Set(samples.map((one) => one.step))].sort((a, b) => a - b);
    draw(samples);
    slider.max = String(Math.max(steps.length - 1, 0));
    // Who has gone back to an earlier step stays there.
    if (follows) slider.value = slider.max;
    turn();
    return true;
  }

  function draw(samples) {
    const answers = new Map();
    for (const one of samples) {
      if (!answers.has(one.prompt)) answers.set(one.prompt, new Map());
      answers.get(one.prompt).set(one.step, one.answer);
    }
    shown = [];
    put(
      list,
      [...answers].map(([prompt, byStep]) => {
        const [first, ...later] = steps;
        const heading = el("h4.small.soft");
        // All steps lie on one another, so that the place is as high as the longest of them and nothing moves from step to step.
        const pages = later.map((step, index) => el("p.said", {}, marked(byStep, index === 0 ? null : later[index - 1], step)));
        const waits = el("p.said.soft", {}, "The first answer comes when it has learnt something.");
        const stack = el("div.pages", {}, pages.length ? pages : waits);
        shown.push({ heading, pages });
        return el(
          "section.sample",
          {},
          el("p.asked", {}, prompt),
          el("div.sides", {}, el("div", {}, el("h4.small.soft", {}, first === 0 ? "Before training" : `Step ${number(first)}`), el("p.said", {}, said(byStep.get(first)))), el("div", {}, heading, stack)),
        );
      }),
    );
  }

  const said = (text) => (text === undefined ? "–" : text || "(nothing)");

  /** An answer with the words marked that the one before did not have; the first is new as a whole. */
  function marked(byStep, before, step) {
    const now = byStep.get(step);
    const then = byStep.get(before);
    if (!now || !then) return said(now);
    const runs = diff(then, now);
    if (alike(runs) === 1) return now;
    return runs
      .filter((run) => run.in !== "left")
      .map(({ text, in: where }) => {
        const word = text.trimEnd();
        return where === "right" ? [el("mark", {}, word), text.slice(word.length)] : text;
      });
  }

  function turn() {
    // The first step stands on the left all the time; the slider goes through those behind it.
    const place = Math.max(Number(slider.value), steps.length > 1 ? 1 : 0);
    slider.min = steps.length > 1 ? "1" : "0";
    const step = steps[place];
    const newest = place === steps.length - 1;
    for (const { heading, pages } of shown) {
      heading.textContent = place === 0 ? "After training" : `After step ${number(step)}`;
      for (const [index, page] of pages.entries()) page.toggleAttribute("data-on", index === place - 1);
    }
    controls.hidden = steps.length < 3;
    at.textContent = steps.length > 1 ? `step ${number(step)}${newest ? ", the newest" : ""}` : "";
    slider.setAttribute("aria-valuetext", at.textContent);
    back.disabled = place <= 1;
    on.disabled = newest;
    legend.textContent = place > 1 ? `Marked: words that are new since step ${number(steps[place - 1])}.` : "";
  }

  function go(by) {
    slider.value = String(Number(slider.value) + by);
    turn();
  }

  return { node, read };
}
