// Listen: one prompt, several speakers side by side, each streaming; a slider that blends two tones; the difference of two answers
// by words; and the lines that ask the same again.

import { events, key } from "./api.js";
import { curl, python } from "./code.js";
import { differences as differing } from "./compare.js";
import { copy, debounce, el, put } from "./dom.js";
import { milliseconds, number, percent, short } from "./format.js";

const EXAMPLES = [
  "What is the status of my order #12345?",
  "My parcel arrived with a dent. What now?",
  "Can I return shoes that I have worn once?",
];
/** How many speakers are chosen at first. */
const AT_FIRST = 3;
/** How long the slider rests before the blend is asked again, in milliseconds. */
const REST = 180;

const newSeed = () => Math.floor(Math.random() * 1_000_000);

export function listen(studio) {
  const cards = new Map();
  let known = [];
  let chosen = null;
  /** Whom the address names, before it is known who is there. */
  let wanted = null;
  let selected = null;
  /** What was asked last, so that the slider asks the same. */
  let asked = null;

  const prompt = el("textarea", { id: "prompt", rows: 3, value: EXAMPLES[0], maxlength: 20000, onkeydown: keys });
  const chips = el("div.chips", { role: "group", "aria-label": "Who answers" });
  const temperature = el("input", { type: "number", min: 0, max: 2, step: 0.1, placeholder: "its own", oninput: code });
  const limit = el("input", { type: "number", min: 1, max: 4096, step: 1, placeholder: "its own", oninput: code });
  const seed = el("input", { type: "number", min: 0, max: 2 ** 48, step: 1, value: String(newSeed()), oninput: code });
  const more = el("input", { placeholder: "customer@2, a*0.5+b*0.5", "aria-label": "Another speaker: a version or a blend" });
  const variables = el("div.settings", { hidden: true });
  const go = el("button.primary", { type: "submit" }, "Ask");
  const stop = el("button", { type: "button", onclick: halt, disabled: true }, "Stop");
  const said = el("p.hide-from-sight", { role: "status", "aria-live": "polite" });

  const parts = [el("select", { "aria-label": "First tone", onchange: mixed }), el("select", { "aria-label": "Second tone", onchange: mixed })];
  const share = el("input", { type: "range", min: 0, max: 100, step: 5, value: "50", "aria-label": "Share of the first tone in the blend", oninput: mixed });
  const spec = el("p.spec.small.soft.num", { "aria-live": "off" });
  const blending = el("input", { type: "checkbox", onchange: layout });
  const blendPanel = el(
    "div.panel.stack.tight",
    { hidden: true },
    el("label.check", {}, blending, el("span", {}, el("b", {}, "Blend two tones"), " – move the slider and hear the mix")),
    el("div.blend", {}, parts[0], share, parts[1], spec),
  );

  const answers = el("div.answers");
  const languages = { curl, Python: python };
  let language = "curl";
  const speakers = el("select", { "aria-label": "The lines for", onchange: () => ((selected = speakers.value), code()) });
  const lines = el("pre.code", { tabindex: 0, "aria-label": "The lines that ask the same" });
  const tabs = Object.keys(languages).map((name) =>
    el("button.chip.small", { type: "button", "aria-pressed": name === language, onclick: () => ((language = name), code()) }, name),
  );
  const left = el("select", { "aria-label": "Compare this answer", onchange: compare });
  const right = el("select", { "aria-label": "With this answer", onchange: compare });
  const differences = el("div.differences");
  const below = el(
    "div.below",
    { hidden: true },
    el(
      "section.panel.stack.tight",
      {},
      el("div.row.between", {}, el("h2", {}, "The same from a program"), el("div.row", {}, speakers, tabs, el("button.plain.small", { type: "button", onclick: () => copy(lines.textContent) }, "Copy"))),
      lines,
    ),
    el(
      "section.panel.stack.tight",
      {},
      el("div.row.between", {}, el("h2", {}, "Difference by words"), el("div.row", {}, left, right)),
      differences,
    ),
  );

  // Nothing is shown that would be moved when it is known who is there.
  const waiting = el("p.lead", {}, "Asking the server who is there …");
  const room = el("div.view", { hidden: true });
  const root = el(
    "section.view",
    { "aria-label": "Listen" },
    el("h1", {}, "Hear the tones"),
    waiting,
    room,
    said,
  );
  put(
    room,
    el(
      "form.composer",
      {
        onsubmit: (event) => {
          event.preventDefault();
          ask();
        },
      },
      el("label.hide-from-sight", { for: "prompt" }, "Prompt"),
      prompt,
      el("div.row", {}, chips, el("span.grow"), stop, go),
      el(
        "details",
        {},
        el("summary", {}, "Settings"),
        el(
          "div.settings",
          {},
          el("label.field", {}, "Temperature", temperature),
          el("label.field", {}, "Most tokens", limit),
          el("label.field", {}, "Seed", seed),
          el("button", { type: "button", onclick: () => ((seed.value = String(newSeed())), code()) }, "New seed"),
          el("label.field", {}, "Another speaker", more),
          el("button", { type: "button", onclick: addSpeaker }, "Add"),
        ),
        variables,
      ),
      blendPanel,
    ),
    el("h2.hide-from-sight", {}, "Answers"),
    answers,
    below,
  );

  function keys(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      ask();
    }
  }
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") halt();
  });

  /* Who answers */

  function refresh() {
    waiting.hidden = Boolean(studio.base);
    room.hidden = !studio.base;
    const names = [...studio.personas, ...(studio.base && studio.baseAllowed ? [studio.base] : [])];
    const own = known.filter((name) => name.includes("@") || name.includes("+"));
    known = [...names, ...own];
    if (chosen === null && names.length) {
      chosen = new Set(studio.personas.slice(0, AT_FIRST - 1));
      if (studio.base && studio.baseAllowed) chosen.add(studio.base);
      if (wanted) chosen.add(wanted);
    }
    for (const [at, select] of parts.entries()) {
      const before = select.value;
      put(select, studio.personas.map((name) => el("option", { value: name }, name)));
      select.value = studio.personas.includes(before) ? before : (studio.personas[at] ?? "");
    }
    blendPanel.hidden = studio.personas.length < 2;
    layout();
  }

  function addSpeaker() {
    const name = more.value.trim();
    if (!name) return;
    if (!known.includes(name)) known.push(name);
    chosen.add(name);
    more.value = "";
    layout();
  }

  const weight = () => Number(share.value) / 100;
  /** The blend in the server's words; at the ends one tone alone. */
  function blend() {
    const [a, b] = parts.map((part) => part.value);
    const w = weight();
    if (a === b) return a;
    return `${a}*${w}+${b}*${Math.round((1 - w) * 100) / 100}`;
  }

  /** Cards for who is chosen, in order; those that stay keep their text. */
  function layout() {
    put(
      chips,
      known.map((name) =>
        el(
          "button.chip",
          {
            type: "button",
            "aria-pressed": chosen.has(name),
            style: { "--tone": studio.tone(name) },
            onclick: () => {
              if (!chosen.delete(name)) chosen.add(name);
              layout();
              [...chips.children].find((chip) => chip.dataset.name === name)?.focus();
            },
            "data-name": name,
          },
          el("i.dot"),
          name === studio.base ? `${name} (base)` : name,
        ),
      ),
    );
    const speaking = known.filter((name) => chosen?.has(name));
    if (blending.checked && !blendPanel.hidden) speaking.push("blend");
    for (const [name, card] of cards) {
      if (speaking.includes(name)) continue;
      card.controller?.abort();
      cards.delete(name);
    }
    for (const name of speaking) if (!cards.has(name)) cards.set(name, makeCard(name));
    put(answers, speaking.map((name) => cards.get(name).node));
    if (!speaking.length) put(answers, el("div.empty", {}, el("p.title", {}, "Nobody is chosen"), el("p", {}, "Choose who answers, above.")));
    mixedLine();
    lists();
    fields();
  }

  function makeCard(name) {
    const text = document.createTextNode("");
    const body = el("div.text.idle", { tabindex: 0, role: "region", "aria-label": `The answer of ${name}` }, "Ask, and the answer comes here.");
    const title = el("h3", {}, name);
    const hash = el("span.mono");
    const numbers = el("div.numbers");
    const node = el(
      "article.answer",
      { "aria-label": name, "aria-busy": "false" },
      el("header", {}, el("i.dot"), title, hash),
      body,
      numbers,
      el(
        "footer",
        {},
        el("button.plain.small", { type: "button", title: "The same question with the same seed", onclick: () => run(cards.get(name), asked ?? request()) }, "Again"),
        el("button.plain.small", { type: "button", onclick: () => copy(text.data) }, "Copy"),
        el("button.plain.small", { type: "button", onclick: () => ((selected = name), lists(), code(), lines.scrollIntoView({ block: "nearest" })) }, "Code"),
      ),
    );
    node.style.setProperty("--tone", name === "blend" ? "var(--accent)" : studio.tone(name));
    return { name, node, body, text, title, hash, numbers, done: false, controller: null };
  }

  /* Asking */

  function request() {
    const body = { prompt: prompt.value.trim() };
    if (limit.value) body.max_new_tokens = Number(limit.value);
    if (temperature.value !== "") body.temperature = Number(temperature.value);
    if (seed.value !== "") body.seed = Number(seed.value);
    return body;
  }

  /** What one speaker is asked: only it has its own variables. */
  function bodyFor(name, body) {
    const who = name === "blend" ? blend() : name;
    const values = {};
    for (const input of variables.querySelectorAll("input")) {
      const owners = input.dataset.owners.split(" ");
      // What is left empty has its default.
      if (input.value && who.split("+").some((part) => owners.includes(part.split(/[@*]/)[0]))) values[input.name] = input.value;
    }
    const given = Object.keys(values).length ? { variables: values } : {};
    const { prompt, ...rest } = body;
    return { prompt, user_type: who, ...given, ...rest };
  }

  async function ask() {
    if (!prompt.value.trim()) {
      prompt.focus();
      return;
    }
    asked = request();
    below.hidden = false;
    lists();
    code();
    await Promise.all([...cards.values()].map((card) => run(card, asked)));
  }

  function halt() {
    for (const card of cards.values()) card.controller?.abort();
  }

  async function run(card, body) {
    card.controller?.abort();
    const controller = new AbortController();
    card.controller = controller;
    card.done = false;
    card.text.data = "";
    card.body.className = "text";
    put(card.body, card.text);
    put(card.numbers);
    card.node.setAttribute("aria-busy", "true");
    busy();
    try {
      for await (const event of events("/generate", { ...bodyFor(card.name, body), stream: true }, controller.signal)) {
        if ("delta" in event) {
          // Who reads further up is left there.
          const follows = card.body.scrollHeight - card.body.scrollTop - card.body.clientHeight < 40;
          card.text.appendData(event.delta);
          if (follows) card.body.scrollTop = card.body.scrollHeight;
        } else {
          end(card, event);
        }
      }
      said.textContent = `${card.title.textContent} has answered.`;
    } catch (error) {
      if (error.name === "AbortError") {
        if (card.controller === controller) put(card.numbers, el("span", {}, "Stopped"));
      } else {
        card.body.className = "text failed";
        put(card.body, el("b", {}, error.title ?? "No answer"), `\n${error.message}`);
        said.textContent = `${card.title.textContent}: ${error.message}`;
      }
    } finally {
      if (card.controller === controller) {
        card.controller = null;
        card.node.setAttribute("aria-busy", "false");
        busy();
        compare();
      }
    }
  }

  function end(card, last) {
    card.done = true;
    const { persona, usage, timings, finish_reason: reason } = last;
    card.title.textContent = persona.version === null ? persona.name : `${persona.name}@${persona.version}`;
    card.hash.textContent = persona.adapters.map((adapter) => short(adapter.sha256)).join(" + ") || "no adapter";
    card.hash.title = persona.adapters.map((adapter) => `${adapter.sha256} × ${adapter.scale}`).join("\n");
    const seconds = (timings.total_ms - (timings.first_token_ms ?? 0)) / 1000;
    const rate = usage.completion_tokens > 1 && seconds > 0 ? (usage.completion_tokens - 1) / seconds : null;
    const facts = [
      ["first token", milliseconds(timings.first_token_ms)],
      ["tokens/s", rate === null ? "–" : number(rate)],
      ["tokens", number(usage.completion_tokens)],
      ["ended", { stop: "by itself", length: "at the limit", timeout: "out of time" }[reason] ?? reason],
    ];
    put(card.numbers, facts.map(([what, value]) => el("span", {}, `${what} `, el("b", {}, value))));
  }

  function busy() {
    const any = [...cards.values()].some((card) => card.controller);
    stop.disabled = !any;
  }

  /* The blend */

  function mixedLine() {
    const [a, b] = parts.map((part) => part.value);
    const w = weight();
    spec.textContent = a === b ? "Choose two different tones." : `${percent(w)} ${a}, ${percent(1 - w)} ${b}: ${blend()}`;
    const card = cards.get("blend");
    if (card) {
      card.title.textContent = blend();
      card.node.setAttribute("aria-label", `Blend ${blend()}`);
    }
  }

  const again = debounce(() => {
    const card = cards.get("blend");
    if (card && asked) run(card, asked);
  }, REST);

  function mixed() {
    if (!blending.checked) {
      blending.checked = true;
      layout();
    }
    mixedLine();
    code();
    if (asked) again();
  }

  /* Below the answers */

  function lists() {
    const names = [...cards.keys()];
    if (!names.includes(selected)) selected = names[0] ?? null;
    put(speakers, names.map((name) => el("option", { value: name }, name === "blend" ? "the blend" : name)));
    speakers.value = selected ?? "";
    for (const [at, select] of [left, right].entries()) {
      const before = select.value;
      put(select, names.map((name) => el("option", { value: name }, name === "blend" ? "the blend" : name)));
      select.value = names.includes(before) ? before : (names[at] ?? names[0] ?? "");
    }
    if (left.value === right.value && names.length > 1) right.value = names.find((name) => name !== left.value);
    compare();
    code();
  }

  function code() {
    for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.textContent === language));
    if (selected) lines.textContent = languages[language](bodyFor(selected, request()), Boolean(key.get()));
  }

  function compare() {
    const [a, b] = [cards.get(left.value), cards.get(right.value)];
    if (!a?.done || !b?.done || a === b) {
      put(differences, el("p.soft.small", {}, a === b ? "Choose two speakers to compare their answers." : "When both have answered, what differs is marked here."));
      return;
    }
    put(differences, differing({ name: a.title.textContent, text: a.text.data }, { name: b.title.textContent, text: b.text.data }));
  }

  /* Variables of system prompts */

  function fields() {
    const names = new Set([...(chosen ?? [])].flatMap((name) => name.split("+").map((part) => part.split(/[@*]/)[0])));
    if (blending.checked) for (const part of parts) names.add(part.value);
    const found = new Map();
    for (const name of names) {
      for (const [variable, value] of Object.entries(studio.variables.get(name) ?? {})) {
        const one = found.get(variable) ?? { value, owners: new Set() };
        one.owners.add(name);
        found.set(variable, one);
      }
    }
    const before = Object.fromEntries([...variables.querySelectorAll("input")].map((input) => [input.name, input.value]));
    variables.hidden = found.size === 0;
    put(
      variables,
      [...found].map(([name, { value, owners }]) =>
        el(
          "label.field",
          {},
          `{{${name}}}`,
          el("input", {
            name,
            value: before[name] ?? "",
            placeholder: typeof value === "string" ? value : "must be given",
            "data-owners": [...owners].join(" "),
            oninput: code,
          }),
        ),
      ),
    );
  }

  studio.events.addEventListener("changed", refresh);
  refresh();

  /** `#listen/customer@2` has that one among those who answer. */
  function show([name]) {
    if (name && chosen && !chosen.has(name)) {
      if (!known.includes(name)) known.push(name);
      chosen.add(name);
      selected = name;
      layout();
    } else if (name && !chosen) {
      known.push(name);
      wanted = name;
    }
    code();
  }

  return { root, show };
}
