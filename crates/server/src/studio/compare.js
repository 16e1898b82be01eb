// Shows two answers to one prompt side by side, and the difference between them word by word. Must not know the views that use it.

import { streamEvents } from "./api.js";
import { diff, similarity } from "./diff.js";
import { el, errorState, setChildren } from "./dom.js";
import { percent } from "./format.js";

const TAGS = { both: "span", left: "del", right: "ins" };

/** Elements that show the difference between two answers, each `{ name, text }`. */
export function differences(a, b) {
  const runs = diff(a.text, b.text);
  return [
    el("p.small.muted", {}, `${percent(similarity(runs))} of the words are the same. Struck out: only ${a.name}. Highlighted: only ${b.name}.`),
    runs.map((run) => el(TAGS[run.in], {}, run.text)),
  ];
}

/**
 * A panel that sends one prompt to two models with the same seed. `models` are the names to choose from, `left` and `right` the first
 * choice, `prompts` the suggestions. `generate` sends the prompt.
 */
export function comparison({ studio, models, left, right, prompts }) {
  const listId = `p${Math.random().toString(36).slice(2)}`;
  const prompt = el("input.wide", { value: prompts[0] ?? "", list: listId, "aria-label": "Prompt", autocomplete: "off", required: true, maxlength: 20000 });
  const modelSelect = (label, value) => {
    const select = el("select", { "aria-label": label }, models.map((name) => el("option", { value: name }, name === studio.base ? `${name} (base)` : name)));
    select.value = value;
    return select;
  };
  const sides = [modelSelect("Left", left), modelSelect("Right", right)].map((select) => {
    const text = document.createTextNode("");
    const body = el("div.text.placeholder", { tabindex: 0, role: "region", "aria-label": "Answer" }, "The answer appears here.");
    const node = el("article.answer", { "aria-busy": "false" }, el("header", {}, select), body);
    const applyModel = () => {
      node.style.setProperty("--swatch", studio.color(select.value));
      body.setAttribute("aria-label", `Answer of ${select.value}`);
    };
    select.addEventListener("change", () => {
      applyModel();
      generate();
    });
    applyModel();
    return { select, text, body, node };
  });
  const difference = el("div.differences");
  const status = el("p.visually-hidden", { role: "status" });
  let controller = null;

  async function generate() {
    if (!prompt.value.trim()) {
      prompt.focus();
      return;
    }
    controller?.abort();
    controller = new AbortController();
    const { signal } = controller;
    const seed = Math.floor(Math.random() * 1_000_000);
    setChildren(difference);
    try {
      await Promise.all(sides.map((side) => stream(side, { prompt: prompt.value.trim(), user_type: side.select.value, seed, max_new_tokens: 120 }, signal)));
    } catch (error) {
      if (error.name === "AbortError") return;
      controller.abort();
      for (const side of sides) side.node.setAttribute("aria-busy", "false");
      setChildren(difference, errorState(error, generate));
      return;
    }
    setChildren(difference, differences(...sides.map((side) => ({ name: side.select.value, text: side.text.data }))));
    status.textContent = "Both answers are complete.";
  }

  async function stream(side, body, signal) {
    side.text.data = "";
    side.body.className = "text";
    setChildren(side.body, side.text);
    side.node.setAttribute("aria-busy", "true");
    for await (const event of streamEvents("/generate", { ...body, stream: true }, signal)) {
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
          generate();
        },
      },
      prompt,
      el("datalist", { id: listId }, prompts.map((text) => el("option", { value: text }))),
      el("button", { type: "submit" }, "Generate both"),
    ),
    el("div.answers.two", {}, sides.map((side) => side.node)),
    difference,
    status,
  );
  return { node, generate };
}
