// Two answers to one prompt, side by side, and what differs between them word by word. A part of views, no view itself.

import { events } from "./api.js";
import { alike, diff } from "./diff.js";
import { el, failure, put } from "./dom.js";
import { percent } from "./format.js";

const MARKS = { both: "span", left: "del", right: "ins" };

/** What differs between two answers, each `{ name, text }`. */
export function differences(a, b) {
  const pieces = diff(a.text, b.text);
  return [
    el("p.small.soft", {}, `${percent(alike(pieces))} of the words are the same. Struck out: only ${a.name}. Marked: only ${b.name}.`),
    pieces.map((piece) => el(MARKS[piece.in], {}, piece.text)),
  ];
}

/**
 * A panel that asks two speakers the same with the same seed. `speakers` are those to choose from, `left` and `right` the first two,
 * `prompts` are offered.
 */
export function comparison({ studio, speakers, left, right, prompts }) {
  const list = `p${Math.random().toString(36).slice(2)}`;
  const prompt = el("input.wide", { value: prompts[0] ?? "", list, "aria-label": "Prompt", autocomplete: "off", required: true, maxlength: 20000 });
  const choice = (label, value) => {
    const select = el("select", { "aria-label": label }, speakers.map((name) => el("option", { value: name }, name === studio.base ? `${name} (base)` : name)));
    select.value = value;
    return select;
  };
  const sides = [choice("Left", left), choice("Right", right)].map((select) => {
    const text = document.createTextNode("");
    const body = el("div.text.idle", { tabindex: 0, role: "region", "aria-label": "Answer" }, "Ask, and the answer comes here.");
    const node = el("article.answer", { "aria-busy": "false" }, el("header", {}, select), body);
    const colour = () => {
      node.style.setProperty("--tone", studio.tone(select.value));
      body.setAttribute("aria-label", `The answer of ${select.value}`);
    };
    select.addEventListener("change", () => {
      colour();
      ask();
    });
    colour();
    return { select, text, body, node };
  });
  const said = el("div.differences");
  const status = el("p.hide-from-sight", { role: "status" });
  let controller = null;

  async function ask() {
    if (!prompt.value.trim()) {
      prompt.focus();
      return;
    }
    controller?.abort();
    controller = new AbortController();
    const { signal } = controller;
    const seed = Math.floor(Math.random() * 1_000_000);
    put(said);
    try {
      await Promise.all(sides.map((side) => speak(side, { prompt: prompt.value.trim(), user_type: side.select.value, seed, max_new_tokens: 120 }, signal)));
    } catch (error) {
      if (error.name === "AbortError") return;
      controller.abort();
      for (const side of sides) side.node.setAttribute("aria-busy", "false");
      put(said, failure(error, ask));
      return;
    }
    put(said, differences(...sides.map((side) => ({ name: side.select.value, text: side.text.data }))));
    status.textContent = "Both have answered.";
  }

  async function speak(side, body, signal) {
    side.text.data = "";
    side.body.className = "text";
    put(side.body, side.text);
    side.node.setAttribute("aria-busy", "true");
    for await (const event of events("/generate", { ...body, stream: true }, signal)) {
      if ("delta" in event) side.text.appendData(event.delta);
    }
    side.node.setAttribute("aria-busy", "false");
  }

  const node = el(
    "div.stack.tight",
    {},
    el(
      "form.row",
      {
        onsubmit: (event) => {
          event.preventDefault();
          ask();
        },
      },
      prompt,
      el("datalist", { id: list }, prompts.map((text) => el("option", { value: text }))),
      el("button", { type: "submit" }, "Ask both"),
    ),
    el("div.answers.two", {}, sides.map((side) => side.node)),
    said,
    status,
  );
  return { node, ask };
}
