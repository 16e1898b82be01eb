// Evaluate: votes between two versions by people who do not see which is which, and what was measured, here or by `lory eval`: who
// speaks whose rows best, how tones differ, and answers side by side.

import { events, get, post } from "./api.js";
import { el, empty, failure, put, scroller, toast } from "./dom.js";
import { number, percent, short, when } from "./format.js";
import { measuring } from "./measure.js";

const PROMPTS = [
  "What is the status of my order #12345?",
  "My parcel arrived with a dent. What now?",
  "Can I return shoes that I have worn once?",
  "Why was my card charged twice?",
  "How long does delivery to Norway take?",
];

export function evaluate(studio) {
  const voting = votes(studio);
  const measured = measurements();
  const start = measuring(studio, (result) => measured.show(result));
  const root = el("section.view", { "aria-label": "Evaluate" }, el("h1", {}, "Which tone is better?"), voting.root, start.root, measured.root);
  return {
    root,
    show() {
      voting.show();
      start.show();
      measured.show();
    },
  };
}

/* Blind votes */

function votes(studio) {
  const options = el("datalist", { id: "speakers" });
  const speaker = (label) => el("input", { list: "speakers", "aria-label": label, autocomplete: "off", required: true });
  const first = speaker("The first speaker");
  const second = speaker("The second speaker");
  const prompts = el("textarea", { rows: 4, value: PROMPTS.join("\n"), "aria-label": "Prompts, one a line" });
  const start = el("button.primary", { type: "submit" }, "Begin");
  const stage = el("div", { "aria-live": "polite" });
  const tallies = el("div");
  const form = el(
    "form.stack.tight",
    {
      onsubmit: (event) => {
        event.preventDefault();
        round(0);
      },
    },
    el("div.row", {}, el("label.field", {}, "One", first), el("label.field", {}, "and the other", second), options, el("span.grow"), start),
    el("details", {}, el("summary", {}, "Prompts"), prompts),
  );
  const root = el(
    "section.panel.stack",
    {},
    el("h2", {}, "Blind vote"),
    el("p.lead", {}, "Two speakers answer the same prompt; left and right are drawn by chance, and who is who is shown after the vote. The votes are kept on the server."),
    form,
    stage,
    tallies,
  );
  let controller = null;

  async function show() {
    const names = [...studio.personas];
    try {
      for (const { name, versions } of (await get("/v1/personas")).data) names.push(...versions.map((version) => `${name}@${version}`));
    } catch {
      // Without admin rights the names alone do: an answer tells its version.
    }
    if (studio.base && studio.baseAllowed) names.push(studio.base);
    put(options, [...new Set(names)].map((name) => el("option", { value: name })));
    first.value ||= studio.personas[0] ?? "";
    second.value ||= studio.personas[1] ?? studio.base ?? "";
    await standings();
  }

  async function standings() {
    let listed;
    try {
      listed = (await get("/v1/votes")).data;
    } catch (error) {
      put(tallies, failure(error, standings));
      return;
    }
    put(
      tallies,
      listed.length === 0
        ? el("p.soft.small", {}, "No votes yet.")
        : listed.map((pair) => {
            const all = pair.a_wins + pair.b_wins + pair.ties;
            const bar = el("div.tally", { role: "img", "aria-label": `${pair.a} ${pair.a_wins}, no difference ${pair.ties}, ${pair.b} ${pair.b_wins}` }, el("i.a"), el("i.tie"), el("i.b"));
            for (const [at, count] of [pair.a_wins, pair.ties, pair.b_wins].entries()) bar.children[at].style.setProperty("flex-grow", count);
            return el(
              "div.standing",
              {},
              el("span", {}, el("b.num", {}, pair.a_wins), ` ${pair.a}`),
              bar,
              el("span", {}, `${pair.b} `, el("b.num", {}, pair.b_wins)),
              el("small.soft", {}, `${number(all)} ${all === 1 ? "vote" : "votes"}, ${number(pair.ties)} without a difference`),
            );
          }),
    );
  }

  /** One prompt to both; then the buttons, then the next. */
  async function round(at) {
    const all = prompts.value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!all.length) {
      toast("Write at least one prompt", "bad");
      return;
    }
    if (at >= all.length) {
      put(stage, el("p", {}, `That were all ${all.length} prompts. Thank you.`));
      start.textContent = "Begin again";
      return;
    }
    controller?.abort();
    controller = new AbortController();
    const prompt = all[at];
    const whoIsLeft = Math.random() < 0.5 ? [first.value, second.value] : [second.value, first.value];
    const seed = Math.floor(Math.random() * 1_000_000);
    const sides = ["Left", "Right"].map((name) => {
      const text = document.createTextNode("");
      const title = el("h3", {}, name);
      const body = el("div.text", { tabindex: 0, role: "region", "aria-label": `${name} answer`, "aria-live": "off" }, text);
      return { name, text, title, body, node: el("article.answer", { "aria-busy": "true" }, el("header", {}, title), body), said: null };
    });
    const buttons = [
      ["Left is better", 0],
      ["No difference", null],
      ["Right is better", 1],
    ].map(([label, side]) => el("button", { type: "button", disabled: true, onclick: () => choose(side) }, label));
    const after = el("div.row.center", {}, buttons);
    put(stage, el("p.asked", {}, el("small.soft", {}, `${at + 1} of ${all.length} `), prompt), el("div.answers.two", {}, sides.map((side) => side.node)), after);
    try {
      await Promise.all(sides.map((side, place) => speak(side, { prompt, user_type: whoIsLeft[place], seed, max_new_tokens: 120 }, controller.signal)));
    } catch (error) {
      if (error.name !== "AbortError") put(stage, failure(error, () => round(at)));
      return;
    }
    for (const button of buttons) button.disabled = false;
    buttons[0].focus();

    async function choose(side) {
      for (const button of buttons) button.disabled = true;
      const [a, b] = sides.map((one) => one.said);
      const winner = side === null ? "tie" : side === 0 ? "a" : "b";
      try {
        await post("/v1/votes", { a, b, winner, prompt });
      } catch (error) {
        toast(error.message, "bad");
        for (const button of buttons) button.disabled = false;
        return;
      }
      for (const [place, one] of sides.entries()) {
        one.title.textContent = `${one.name} was ${one.said}`;
        one.node.style.setProperty("--tone", side === place ? "var(--good)" : "var(--tone-base)");
      }
      const next = el("button.primary", { type: "button", onclick: () => round(at + 1) }, at + 1 < all.length ? "Next prompt" : "Finish");
      put(after, next);
      next.focus();
      await standings();
    }
  }

  async function speak(side, body, signal) {
    for await (const event of events("/generate", { ...body, stream: true }, signal)) {
      if ("delta" in event) side.text.appendData(event.delta);
      else side.said = event.persona.version === null ? event.persona.name : `${event.persona.name}@${event.persona.version}`;
    }
    side.node.setAttribute("aria-busy", "false");
  }

  return { root, show };
}

/* What was measured */

function measurements() {
  const choice = el("select", { "aria-label": "Which evaluation", onchange: () => read() });
  const content = el("div.stack");
  const head = el("div.row.between", {}, el("h2", {}, "What was measured"), choice);
  const root = el("section.panel.stack", {}, head, content);

  /** Reads the list, and shows `result`, which is new, or else the one that was chosen. */
  async function show(result) {
    let listed;
    try {
      listed = (await get("/v1/evaluations")).data;
    } catch (error) {
      choice.hidden = true;
      // Who may measure and not administer sees what was measured just now.
      if (result && error.status === 403) {
        draw(result);
        return;
      }
      const title = error.status === 403 ? "Measurements are for keys with admin rights" : undefined;
      put(content, failure(title ? Object.assign(new Error(error.message), { title }) : error, () => show(result)));
      return;
    }
    choice.hidden = listed.length === 0;
    if (!listed.length) {
      put(content, empty("Nothing was measured yet", el("p", {}, "Measure above, or with ", el("code", {}, "lory eval"), ": losses under each adapter, how distinct the tones are, and answers side by side are shown here then.")));
      return;
    }
    const before = choice.value;
    put(choice, listed.map((one) => el("option", { value: one.id }, `${when(one.time)}: ${one.personas.map((persona) => `${persona.name}@${persona.version}`).join(", ")}`)));
    const wanted = [result?.id, before].find((id) => listed.some((one) => one.id === id));
    if (wanted) choice.value = wanted;
    await read();
  }

  async function read() {
    try {
      draw(await get(`/v1/evaluations/${encodeURIComponent(choice.value)}`));
    } catch (error) {
      put(content, failure(error, read));
    }
  }

  function draw(found) {
    put(
      content,
      found.missed.length > 0
        ? el("div", {}, el("p.wrong", {}, "Thresholds that were missed:"), el("ul", {}, found.missed.map((line) => el("li.small", {}, line))))
        : el("p.small", {}, el("span.tag.on", {}, "gate passed"), ` on ${found.base}`),
      marks(found),
      el(
        "div.maps",
        {},
        map("Loss, in nats a token", "Rows of", found.losses, (value) => value.toFixed(3), true, "Lower is better: each persona's rows should be easiest for its own adapter."),
        found.personas.length > 1 && map("In the tone of", "Answers of", found.tones, percent, false, "Each persona's answers should pass its own tone check, and not the others'."),
        found.personas.length > 1 && map("Distinct from", "Answers of", found.distinct, (value) => value.toFixed(2), false, "1 where no phrase is shared."),
      ),
      samples(found),
    );
  }

  function marks(found) {
    const share = (value) => (typeof value === "number" ? percent(value) : "–");
    const plain = (value) => (typeof value === "number" ? value.toFixed(3) : "–");
    const columns = [
      ["Persona", (one) => [el("b", {}, `${one.name}@${one.version}`), one.adapter && el("div.mono.soft", { title: one.adapter }, short(one.adapter))]],
      ["Tone right", (one) => share(one.persona.tone_share)],
      ["Identifiers right", (one) => share(one.persona.copied_share)],
      ["Loss", (one) => plain(one.loss)],
      ["Drift", (one) => plain(one.drift?.kl)],
      ["Repetition", (one) => share(one.persona.repetition)],
      ["Length", (one) => plain(one.persona.length_ratio)],
    ];
    return scroller(
      "What was measured",
      el("table", {}, el("thead", {}, el("tr", {}, columns.map(([title]) => el("th", { scope: "col" }, title)))), el("tbody", {}, found.personas.map((one) => el("tr", {}, columns.map(([, cell]) => el("td.num", {}, cell(one))))))),
    );
  }

  /** A heat map: the more colour, the better of its row. */
  function map(title, corner, cells, say, lowIsGood, about) {
    const rows = Object.keys(cells ?? {});
    if (!rows.length) return null;
    const columns = Object.keys(cells[rows[0]]);
    const all = rows.flatMap((row) => columns.map((column) => cells[row][column])).filter((value) => typeof value === "number");
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const heat = (value) => {
      const share = high > low ? (value - low) / (high - low) : 0.5;
      return Math.round(8 + 62 * (lowIsGood ? 1 - share : share));
    };
    return el(
      "figure.heat",
      {},
      el("figcaption", {}, el("h3", {}, title), el("p.small.soft", {}, about)),
      scroller(
        title,
        el(
          "table",
          {},
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, corner), columns.map((column) => el("th", { scope: "col" }, column)))),
          el(
            "tbody",
            {},
            rows.map((row) =>
              el(
                "tr",
                {},
                el("th", { scope: "row" }, row),
                columns.map((column) => {
                  const value = cells[row][column];
                  if (typeof value !== "number") return el("td.num.soft", {}, "–");
                  return el("td.num.cell", { style: { "--heat": `${heat(value)}%` } }, say(value));
                }),
              ),
            ),
          ),
        ),
      ),
    );
  }

  function samples(found) {
    if (!found.samples?.length) return null;
    return el(
      "details",
      {},
      el("summary", {}, `Questions, answered side by side (${found.samples.length})`),
      el(
        "div.stack",
        {},
        found.samples.map((sample) =>
          el(
            "section.sample",
            {},
            el("p.asked", {}, sample.question),
            el(
              "div.sides",
              {},
              [...(sample.base ? [[found.base, sample.base]] : []), ...Object.entries(sample.answers)].map(([name, text]) => el("div", {}, el("h4.small.soft", {}, name), el("p.said", {}, text))),
            ),
          ),
        ),
      ),
    );
  }

  return { root, show };
}
