// One card of the playground: streams one model's answer and shows its timings. Must not know the other cards.

import { streamEvents } from "./api.js";
import { copyText, el, setChildren } from "./dom.js";
import { milliseconds, number, shortHash, versionedName } from "./format.js";

/** What ended an answer, by `finish_reason`. */
const ENDED = { stop: "normally", length: "at the token limit", timeout: "at the time limit" };

/**
 * A card for `name`. `onRegenerate` and `onShowCode` are the buttons' actions; `onStart` and `onEnd` are called around each answer, and
 * `announce` with messages for screen readers.
 */
export function answerCard({ name, color, onRegenerate, onShowCode, onStart, onEnd, announce }) {
  const text = document.createTextNode("");
  const body = el("div.text.placeholder", { tabindex: 0, role: "region", "aria-label": `Answer of ${name}` }, "The answer appears here.");
  const title = el("h3", {}, name);
  const hash = el("span.mono");
  const facts = el("div.stats");
  const node = el(
    "article.answer",
    { "aria-label": name, "aria-busy": "false", style: { "--swatch": color } },
    el("header", {}, el("i.dot"), title, hash),
    body,
    facts,
    el(
      "footer",
      {},
      el("button.plain.small", { type: "button", title: "Sends the same prompt with the same seed again", onclick: onRegenerate }, "Regenerate"),
      el("button.plain.small", { type: "button", onclick: () => copyText(text.data) }, "Copy"),
      el("button.plain.small", { type: "button", onclick: onShowCode }, "Code"),
    ),
  );
  let controller = null;
  let complete = false;

  async function generate(request) {
    controller?.abort();
    const own = new AbortController();
    controller = own;
    complete = false;
    text.data = "";
    body.className = "text";
    setChildren(body, text);
    setChildren(facts);
    node.setAttribute("aria-busy", "true");
    onStart();
    try {
      for await (const event of streamEvents("/generate", { ...request, stream: true }, own.signal)) {
        if ("delta" in event) appendText(event.delta);
        else finish(event);
      }
      announce(`${title.textContent} has answered.`);
    } catch (error) {
      if (error.name === "AbortError") {
        if (controller === own) setChildren(facts, el("span", {}, "Stopped"));
      } else {
        body.className = "text failed";
        setChildren(body, el("b", {}, error.title ?? "The request failed"), `\n${error.message}`);
        announce(`${title.textContent}: ${error.message}`);
      }
    } finally {
      if (controller === own) {
        controller = null;
        node.setAttribute("aria-busy", "false");
        onEnd();
      }
    }
  }

  /** Scrolls along, unless the reader has scrolled up. */
  function appendText(delta) {
    const atEnd = body.scrollHeight - body.scrollTop - body.clientHeight < 40;
    text.appendData(delta);
    if (atEnd) body.scrollTop = body.scrollHeight;
  }

  function finish({ persona, usage, timings, finish_reason: reason }) {
    complete = true;
    title.textContent = versionedName(persona);
    hash.textContent = persona.adapters.map((adapter) => shortHash(adapter.sha256)).join(" + ") || "no adapter";
    hash.title = persona.adapters.map((adapter) => `${adapter.sha256} × ${adapter.scale}`).join("\n");
    const seconds = (timings.total_ms - (timings.first_token_ms ?? 0)) / 1000;
    const rate = usage.completion_tokens > 1 && seconds > 0 ? (usage.completion_tokens - 1) / seconds : null;
    const values = [
      ["first token", milliseconds(timings.first_token_ms)],
      ["tokens/s", rate === null ? "–" : number(rate)],
      ["tokens", number(usage.completion_tokens)],
      ["ended", ENDED[reason] ?? reason],
    ];
    setChildren(facts, values.map(([label, value]) => el("span", {}, `${label} `, el("b", {}, value))));
  }

  return {
    node,
    generate,
    stop: () => controller?.abort(),
    setTitle(newTitle, label) {
      title.textContent = newTitle;
      node.setAttribute("aria-label", label);
    },
    get busy() {
      return controller !== null;
    },
    get complete() {
      return complete;
    },
    /** `{ name, text }` for a comparison. */
    get answer() {
      return { name: title.textContent, text: text.data };
    },
  };
}
