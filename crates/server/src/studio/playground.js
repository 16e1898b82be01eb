// Playground: one prompt, answered by several models side by side; a blend of two personas; the code of each request; and the difference
// between two answers. A model is a persona, one of its versions, a blend or the base.

import { key } from "./api.js";
import { answerCard } from "./answer-card.js";
import { blendControls } from "./blend.js";
import { differences } from "./compare.js";
import { copyText, debounce, el, setChildren } from "./dom.js";
import { EXAMPLE_PROMPTS } from "./example-prompts.js";
import { curl, python } from "./snippets.js";

/** How many models are selected at first. */
const INITIAL_MODELS = 3;
/** How long the slider rests before the blend is generated again, in milliseconds. */
const SLIDER_DELAY = 180;
/** The blend's key among the cards. */
const BLEND = "blend";

const LANGUAGES = { curl, Python: python };

const newSeed = () => Math.floor(Math.random() * 1_000_000);
/** The names of the personas in a model name, without versions and weights. */
const personasOf = (model) => model.split("+").map((part) => part.split(/[@*]/)[0]);

export function playground(studio) {
  /** Model name, or `BLEND` -> card. */
  const cards = new Map();
  let models = [];
  /** The selected models; null until the server's models are known. */
  let selected = null;
  /** The model in the page's address, until the server's models are known. */
  let linkedModel = null;
  let codeModel = null;
  /** The settings of the last prompt, which the slider and "Regenerate" send again. */
  let lastRequest = null;

  /* Prompt and settings */

  const prompt = el("textarea", { id: "prompt", rows: 3, value: EXAMPLE_PROMPTS[0], maxlength: 20000, onkeydown: submitOnCtrlEnter });
  const chips = el("div.chips", { role: "group", "aria-label": "Models that answer" });
  const temperature = el("input", { type: "number", min: 0, max: 2, step: 0.1, placeholder: "default", oninput: showCode });
  const maxTokens = el("input", { type: "number", min: 1, max: 4096, step: 1, placeholder: "default", oninput: showCode });
  const seed = el("input", { type: "number", min: 0, max: 2 ** 48, step: 1, value: String(newSeed()), oninput: showCode });
  const otherModel = el("input", { placeholder: "customer@2, a*0.5+b*0.5", "aria-label": "Version or blend to add" });
  const variables = el("div.settings", { hidden: true });
  const stopButton = el("button", { type: "button", onclick: stopAll, disabled: true }, "Stop");
  const announcement = el("p.visually-hidden", { role: "status", "aria-live": "polite" });
  const blend = blendControls({
    onToggle: layOut,
    onChange: () => {
      showBlendName();
      showCode();
      if (lastRequest) regenerateBlend();
    },
  });
  const composer = el(
    "form.composer",
    {
      onsubmit: (event) => {
        event.preventDefault();
        generateAll();
      },
    },
    el("label.visually-hidden", { for: "prompt" }, "Prompt"),
    prompt,
    el("div.row", {}, chips, el("span.spacer"), stopButton, el("button.primary", { type: "submit" }, "Generate")),
    el(
      "details",
      {},
      el("summary", {}, "Settings"),
      el(
        "div.settings",
        {},
        el("label.field", {}, "Temperature", temperature),
        el("label.field", {}, "Max tokens", maxTokens),
        el("label.field", {}, "Seed", seed),
        el("button", { type: "button", onclick: () => ((seed.value = String(newSeed())), showCode()) }, "New seed"),
        el("label.field", {}, "Version or blend", otherModel),
        el("button", { type: "button", onclick: addModel }, "Add"),
      ),
      variables,
    ),
    blend.root,
  );

  /* Answers, code and difference */

  const answers = el("div.answers");
  let language = "curl";
  const codeSelect = el("select", { "aria-label": "Show code for", onchange: () => ((codeModel = codeSelect.value), showCode()) });
  const code = el("pre.code", { tabindex: 0, "aria-label": "Code" });
  const languageChips = Object.keys(LANGUAGES).map((name) =>
    el("button.chip.small", { type: "button", "aria-pressed": name === language, onclick: () => ((language = name), showCode()) }, name),
  );
  const left = el("select", { "aria-label": "First answer to compare", onchange: showDifference });
  const right = el("select", { "aria-label": "Second answer to compare", onchange: showDifference });
  const difference = el("div.differences");
  const details = el(
    "div.two-columns",
    { hidden: true },
    el(
      "section.panel.stack.tight",
      {},
      el("div.row.between", {}, el("h2", {}, "Code for this request"), el("div.row", {}, codeSelect, languageChips, el("button.plain.small", { type: "button", onclick: () => copyText(code.textContent) }, "Copy"))),
      code,
    ),
    el("section.panel.stack.tight", {}, el("div.row.between", {}, el("h2", {}, "Compare two answers"), el("div.row", {}, left, right)), difference),
  );

  // Hidden until the models are known, so that nothing moves when they arrive.
  const connecting = el("p.intro", {}, "Connecting to the server …");
  const content = el("div.view", { hidden: true }, composer, el("h2.visually-hidden", {}, "Answers"), answers, details);
  const root = el("section.view", { "aria-label": "Playground" }, el("h1", {}, "Compare tones side by side"), connecting, content, announcement);
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stopAll();
  });

  function submitOnCtrlEnter(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      generateAll();
    }
  }

  /* Selecting models */

  function refresh() {
    connecting.hidden = Boolean(studio.base);
    content.hidden = !studio.base;
    const served = [...studio.personas, ...(studio.base && studio.baseAllowed ? [studio.base] : [])];
    const added = models.filter((name) => name.includes("@") || name.includes("+"));
    models = [...served, ...added];
    if (selected === null && served.length) {
      selected = new Set(studio.personas.slice(0, INITIAL_MODELS - 1));
      if (studio.base && studio.baseAllowed) selected.add(studio.base);
      if (linkedModel) selected.add(linkedModel);
    }
    blend.setPersonas(studio.personas);
    layOut();
  }

  function addModel() {
    const name = otherModel.value.trim();
    if (!name) return;
    if (!models.includes(name)) models.push(name);
    selected.add(name);
    otherModel.value = "";
    layOut();
  }

  /** Shows one card for each selected model, in order. Existing cards keep their text. */
  function layOut() {
    setChildren(chips, models.map(modelChip));
    const shown = models.filter((name) => selected?.has(name));
    if (blend.enabled) shown.push(BLEND);
    for (const [name, card] of cards) {
      if (shown.includes(name)) continue;
      card.stop();
      cards.delete(name);
    }
    for (const name of shown) if (!cards.has(name)) cards.set(name, makeCard(name));
    setChildren(answers, shown.map((name) => cards.get(name).node));
    if (!shown.length) setChildren(answers, el("div.empty", {}, el("p.title", {}, "No model selected"), el("p", {}, "Select at least one model above.")));
    showBlendName();
    fillSelects();
    showVariables();
  }

  function modelChip(name) {
    return el(
      "button.chip",
      {
        type: "button",
        "aria-pressed": Boolean(selected?.has(name)),
        style: { "--swatch": studio.color(name) },
        onclick: () => {
          if (!selected.delete(name)) selected.add(name);
          layOut();
          [...chips.children].find((chip) => chip.dataset.name === name)?.focus();
        },
        "data-name": name,
      },
      el("i.dot"),
      name === studio.base ? `${name} (base)` : name,
    );
  }

  function makeCard(name) {
    const card = answerCard({
      name,
      color: name === BLEND ? "var(--accent)" : studio.color(name),
      onRegenerate: () => card.generate(requestFor(name, lastRequest ?? currentRequest())),
      onShowCode() {
        codeModel = name;
        fillSelects();
        showCode();
        code.scrollIntoView({ block: "nearest" });
      },
      onStart: updateStopButton,
      onEnd() {
        updateStopButton();
        showDifference();
      },
      announce: (message) => {
        announcement.textContent = message;
      },
    });
    return card;
  }

  /** `#playground/customer@2` selects that model too. */
  function show([name]) {
    if (name && selected && !selected.has(name)) {
      if (!models.includes(name)) models.push(name);
      selected.add(name);
      codeModel = name;
      layOut();
    } else if (name && !selected) {
      models.push(name);
      linkedModel = name;
    }
    showCode();
  }

  /* Generating */

  function currentRequest() {
    const request = { prompt: prompt.value.trim() };
    if (maxTokens.value) request.max_new_tokens = Number(maxTokens.value);
    if (temperature.value !== "") request.temperature = Number(temperature.value);
    if (seed.value !== "") request.seed = Number(seed.value);
    return request;
  }

  /** The request body for one model, with the variables that its own personas have. */
  function requestFor(name, request) {
    const model = name === BLEND ? blend.name() : name;
    const personas = personasOf(model);
    const values = {};
    for (const input of variables.querySelectorAll("input")) {
      const owners = input.dataset.owners.split(" ");
      // An empty field means the variable's default.
      if (input.value && personas.some((persona) => owners.includes(persona))) values[input.name] = input.value;
    }
    const given = Object.keys(values).length ? { variables: values } : {};
    const { prompt, ...rest } = request;
    return { prompt, user_type: model, ...given, ...rest };
  }

  async function generateAll() {
    if (!prompt.value.trim()) {
      prompt.focus();
      return;
    }
    lastRequest = currentRequest();
    details.hidden = false;
    fillSelects();
    showCode();
    await Promise.all([...cards].map(([name, card]) => card.generate(requestFor(name, lastRequest))));
  }

  const regenerateBlend = debounce(() => {
    if (cards.has(BLEND) && lastRequest) cards.get(BLEND).generate(requestFor(BLEND, lastRequest));
  }, SLIDER_DELAY);

  function stopAll() {
    for (const card of cards.values()) card.stop();
  }

  function updateStopButton() {
    stopButton.disabled = ![...cards.values()].some((card) => card.busy);
  }

  function showBlendName() {
    cards.get(BLEND)?.setTitle(blend.name(), `Blend ${blend.name()}`);
  }

  /* Code and difference */

  function fillSelects() {
    const names = [...cards.keys()];
    const options = () => names.map((name) => el("option", { value: name }, name === BLEND ? "the blend" : name));
    if (!names.includes(codeModel)) codeModel = names[0] ?? null;
    setChildren(codeSelect, options());
    codeSelect.value = codeModel ?? "";
    for (const [index, select] of [left, right].entries()) {
      const before = select.value;
      setChildren(select, options());
      select.value = names.includes(before) ? before : (names[index] ?? names[0] ?? "");
    }
    if (left.value === right.value && names.length > 1) right.value = names.find((name) => name !== left.value);
    showDifference();
    showCode();
  }

  function showCode() {
    for (const chip of languageChips) chip.setAttribute("aria-pressed", String(chip.textContent === language));
    if (codeModel) code.textContent = LANGUAGES[language](requestFor(codeModel, currentRequest()), Boolean(key.get()));
  }

  function showDifference() {
    const [a, b] = [cards.get(left.value), cards.get(right.value)];
    if (!a?.complete || !b?.complete || a === b) {
      setChildren(difference, el("p.muted.small", {}, a === b ? "Select two different answers to compare." : "The comparison appears when both answers are complete."));
      return;
    }
    setChildren(difference, differences(a.answer, b.answer));
  }

  /* Variables of system prompts */

  function showVariables() {
    const personas = new Set([...(selected ?? [])].flatMap(personasOf));
    if (blend.enabled) for (const name of blend.names()) personas.add(name);
    const found = new Map();
    for (const persona of personas) {
      for (const [variable, value] of Object.entries(studio.variables.get(persona) ?? {})) {
        const field = found.get(variable) ?? { value, owners: new Set() };
        field.owners.add(persona);
        found.set(variable, field);
      }
    }
    const before = Object.fromEntries([...variables.querySelectorAll("input")].map((input) => [input.name, input.value]));
    variables.hidden = found.size === 0;
    setChildren(
      variables,
      [...found].map(([name, { value, owners }]) =>
        el(
          "label.field",
          {},
          `{{${name}}}`,
          el("input", {
            name,
            value: before[name] ?? "",
            placeholder: typeof value === "string" ? value : "required",
            "data-owners": [...owners].join(" "),
            oninput: showCode,
          }),
        ),
      ),
    );
  }

  studio.events.addEventListener("changed", refresh);
  refresh();
  return { root, show };
}
