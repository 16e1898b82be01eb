// A blind vote: two models answer the same prompt, the user votes without seeing which is which, and the server stores the vote. Must not
// know the evaluations.

import { get, post, streamEvents } from "./api.js";
import { el, errorState, setChildren, toast } from "./dom.js";
import { EXAMPLE_PROMPTS } from "./example-prompts.js";
import { count, versionedName } from "./format.js";

export function blindVote(studio) {
  const options = el("datalist", { id: "vote-models" });
  const modelInput = (label) => el("label.field", {}, label, el("input", { list: "vote-models", autocomplete: "off", required: true }));
  const [firstField, secondField] = [modelInput("First persona"), modelInput("Second persona")];
  const [first, second] = [firstField, secondField].map((field) => field.querySelector("input"));
  const prompts = el("textarea", { rows: 4, value: EXAMPLE_PROMPTS.join("\n"), "aria-label": "Prompts, one per line" });
  const startButton = el("button.primary", { type: "submit" }, "Start voting");
  const stage = el("div", { "aria-live": "polite" });
  const totals = el("div");
  const form = el(
    "form.stack.tight",
    {
      onsubmit: (event) => {
        event.preventDefault();
        showRound(0);
      },
    },
    el("div.row", {}, firstField, secondField, options, el("span.spacer"), startButton),
    el("details", {}, el("summary", {}, "Prompts"), prompts),
  );
  const root = el(
    "section.panel.stack",
    {},
    el("h2", {}, "Blind vote"),
    el("p.intro", {}, "Two personas answer the same prompt. Left and right are random, and the names appear after your vote. The server stores the votes."),
    form,
    stage,
    totals,
  );
  let controller = null;

  async function show() {
    const names = [...studio.personas];
    try {
      for (const { name, versions } of (await get("/v1/personas")).data) names.push(...versions.map((version) => `${name}@${version}`));
    } catch {
      // Listing versions requires an admin key. The bare names are enough: an answer says which version it came from.
    }
    if (studio.base && studio.baseAllowed) names.push(studio.base);
    setChildren(options, [...new Set(names)].map((name) => el("option", { value: name })));
    first.value ||= studio.personas[0] ?? "";
    second.value ||= studio.personas[1] ?? studio.base ?? "";
    await showTotals();
  }

  async function showTotals() {
    let pairs;
    try {
      pairs = (await get("/v1/votes")).data;
    } catch (error) {
      setChildren(totals, errorState(error, showTotals));
      return;
    }
    setChildren(totals, pairs.length ? pairs.map(pairTotal) : el("p.muted.small", {}, "No votes yet."));
  }

  function pairTotal(pair) {
    const all = pair.a_wins + pair.b_wins + pair.ties;
    const bar = el("div.tally", { role: "img", "aria-label": `${pair.a} ${pair.a_wins}, ties ${pair.ties}, ${pair.b} ${pair.b_wins}` }, el("i.a"), el("i.tie"), el("i.b"));
    for (const [index, count] of [pair.a_wins, pair.ties, pair.b_wins].entries()) bar.children[index].style.setProperty("flex-grow", count);
    return el(
      "div.vote-result",
      {},
      el("span", {}, el("b.numeric", {}, pair.a_wins), ` ${pair.a}`),
      bar,
      el("span", {}, `${pair.b} `, el("b.numeric", {}, pair.b_wins)),
      el("small.muted", {}, `${count(all, "vote")}, ${count(pair.ties, "tie")}`),
    );
  }

  /** One prompt: both answers, then the vote, then the button for the next prompt. */
  async function showRound(index) {
    const all = prompts.value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!all.length) {
      toast("Write at least one prompt", "bad");
      return;
    }
    if (index >= all.length) {
      setChildren(stage, el("p", {}, `All ${all.length} prompts are done. Thank you for voting.`));
      startButton.textContent = "Start again";
      return;
    }
    controller?.abort();
    controller = new AbortController();
    const prompt = all[index];
    const models = Math.random() < 0.5 ? [first.value, second.value] : [second.value, first.value];
    const seed = Math.floor(Math.random() * 1_000_000);
    const sides = ["Left", "Right"].map(answerSide);
    const buttons = [
      ["Left is better", 0],
      ["No difference", null],
      ["Right is better", 1],
    ].map(([label, winner]) => el("button", { type: "button", disabled: true, onclick: () => vote(winner) }, label));
    const controls = el("div.row.center", {}, buttons);
    setChildren(stage, el("p.prompt-text", {}, el("small.muted", {}, `${index + 1} of ${all.length} `), prompt), el("div.answers.two", {}, sides.map((side) => side.node)), controls);
    try {
      await Promise.all(sides.map((side, at) => stream(side, { prompt, user_type: models[at], seed, max_new_tokens: 120 }, controller.signal)));
    } catch (error) {
      if (error.name !== "AbortError") setChildren(stage, errorState(error, () => showRound(index)));
      return;
    }
    for (const button of buttons) button.disabled = false;
    buttons[0].focus();

    async function vote(better) {
      for (const button of buttons) button.disabled = true;
      const [a, b] = sides.map((side) => side.model);
      const winner = better === null ? "tie" : better === 0 ? "a" : "b";
      try {
        await post("/v1/votes", { a, b, winner, prompt });
      } catch (error) {
        toast(error.message, "bad");
        for (const button of buttons) button.disabled = false;
        return;
      }
      for (const [at, side] of sides.entries()) {
        side.title.textContent = `${side.label}: ${side.model}`;
        side.node.style.setProperty("--swatch", better === at ? "var(--success)" : "var(--palette-base)");
      }
      const next = el("button.primary", { type: "button", onclick: () => showRound(index + 1) }, index + 1 < all.length ? "Next prompt" : "Finish");
      setChildren(controls, next);
      next.focus();
      await showTotals();
    }
  }

  function answerSide(label) {
    const text = document.createTextNode("");
    const title = el("h3", {}, label);
    const body = el("div.text", { tabindex: 0, role: "region", "aria-label": `${label} answer`, "aria-live": "off" }, text);
    return { label, text, title, node: el("article.answer", { "aria-busy": "true" }, el("header", {}, title), body), model: null };
  }

  async function stream(side, body, signal) {
    for await (const event of streamEvents("/generate", { ...body, stream: true }, signal)) {
      if ("delta" in event) side.text.appendData(event.delta);
      else side.model = versionedName(event.persona);
    }
    side.node.setAttribute("aria-busy", "false");
  }

  return { root, show };
}
