// The results of stored evaluations: the eval gate, a table of scores, heat maps, and answers side by side. Must not know how an
// evaluation is started.

import { get } from "./api.js";
import { el, emptyState, errorState, scrollable, setChildren } from "./dom.js";
import { count, percent, relativeTime, shortHash } from "./format.js";

export function evaluationResults() {
  const choice = el("select", { "aria-label": "Evaluation", onchange: () => load() });
  const content = el("div.stack");
  const root = el("section.panel.stack", {}, el("div.row.between", {}, el("h2", {}, "Results"), choice), content);

  /** Reads the list, and shows `result` if it is given, or else the evaluation that was selected before. */
  async function show(result) {
    let listed;
    try {
      listed = (await get("/v1/evaluations")).data;
    } catch (error) {
      choice.hidden = true;
      // A key that may evaluate but not list results can still see its own.
      if (result && error.status === 403) draw(result);
      else setChildren(content, errorState(error, () => show(result), { 403: "Listing evaluation results requires an admin key" }));
      return;
    }
    choice.hidden = listed.length === 0;
    if (!listed.length) {
      setChildren(content, emptyState("No evaluations yet", el("p", {}, "Run one above, or with ", el("code", {}, "lory eval"), ". The results show the loss of each adapter, how distinct the tones are, and answers side by side.")));
      return;
    }
    const before = choice.value;
    setChildren(choice, listed.map(({ id, time, personas }) => el("option", { value: id }, `${relativeTime(time)}: ${personas.map(({ name, version }) => `${name}@${version}`).join(", ")}`)));
    const wanted = [result?.id, before].find((id) => listed.some((one) => one.id === id));
    if (wanted) choice.value = wanted;
    await load();
  }

  async function load() {
    try {
      draw(await get(`/v1/evaluations/${encodeURIComponent(choice.value)}`));
    } catch (error) {
      setChildren(content, errorState(error, load));
    }
  }

  function draw(result) {
    const several = result.personas.length > 1;
    setChildren(
      content,
      result.missed.length > 0
        ? el("div", {}, el("p.error", {}, "Missed thresholds:"), el("ul", {}, result.missed.map((line) => el("li.small", {}, line))))
        : el("p.small", {}, el("span.tag.on", {}, "eval gate passed"), ` on ${result.base}`),
      scoreTable(result.personas),
      el(
        "div.heat-maps",
        {},
        heatMap({
          title: "Loss (nats per token)",
          corner: "Rows of",
          hint: "Lower is better. Each persona's own adapter should have the lowest loss on its rows.",
          cells: result.losses,
          format: (value) => value.toFixed(3),
          lowIsGood: true,
        }),
        several &&
          heatMap({
            title: "Passes the tone check of",
            corner: "Answers of",
            hint: "Each persona's answers should pass its own tone check, and not the others'.",
            cells: result.tones,
            format: percent,
          }),
        several &&
          heatMap({
            title: "Distinctness from",
            corner: "Answers of",
            hint: "1 means that the answers share no phrases.",
            cells: result.distinct,
            format: (value) => value.toFixed(2),
          }),
      ),
      sampleList(result),
    );
  }

  function scoreTable(personas) {
    const share = (value) => (typeof value === "number" ? percent(value) : "–");
    const decimal = (value) => (typeof value === "number" ? value.toFixed(3) : "–");
    const columns = [
      ["Persona", (one) => [el("b", {}, `${one.name}@${one.version}`), one.adapter && el("div.mono.muted", { title: one.adapter }, shortHash(one.adapter))]],
      ["Tone check", (one) => share(one.persona.tone_share)],
      ["Identifiers correct", (one) => share(one.persona.copied_share)],
      ["Loss", (one) => decimal(one.loss)],
      ["Drift from base", (one) => decimal(one.drift?.kl)],
      ["Repetition", (one) => share(one.persona.repetition)],
      ["Length ratio", (one) => decimal(one.persona.length_ratio)],
    ];
    return scrollable(
      "Scores",
      el("table", {}, el("thead", {}, el("tr", {}, columns.map(([title]) => el("th", { scope: "col" }, title)))), el("tbody", {}, personas.map((one) => el("tr", {}, columns.map(([, cell]) => el("td.numeric", {}, cell(one))))))),
    );
  }

  /** A table coloured by value, `cells[row][column]`: the more colour, the better. */
  function heatMap({ title, corner, hint, cells, format, lowIsGood = false }) {
    const rows = Object.keys(cells ?? {});
    if (!rows.length) return null;
    const columns = Object.keys(cells[rows[0]]);
    const values = rows.flatMap((row) => columns.map((column) => cells[row][column])).filter((value) => typeof value === "number");
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const heat = (value) => {
      const share = high > low ? (value - low) / (high - low) : 0.5;
      return Math.round(8 + 62 * (lowIsGood ? 1 - share : share));
    };
    const cell = (value) => {
      if (typeof value !== "number") return el("td.numeric.muted", {}, "–");
      return el("td.numeric.cell", { style: { "--heat-share": `${heat(value)}%` } }, format(value));
    };
    return el(
      "figure.heat-map",
      {},
      el("figcaption", {}, el("h3", {}, title), el("p.small.muted", {}, hint)),
      scrollable(
        title,
        el(
          "table",
          {},
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, corner), columns.map((column) => el("th", { scope: "col" }, column)))),
          el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row), columns.map((column) => cell(cells[row][column]))))),
        ),
      ),
    );
  }

  function sampleList({ base, samples }) {
    if (!samples?.length) return null;
    const column = ([name, text]) => el("div", {}, el("h4.small.muted", {}, name), el("p.quote", {}, text));
    return el(
      "details",
      {},
      el("summary", {}, `Answers side by side (${count(samples.length, "question")})`),
      el(
        "div.stack",
        {},
        samples.map((sample) => el("section.sample", {}, el("p.prompt-text", {}, sample.question), el("div.columns", {}, [...(sample.base ? [[base, sample.base]] : []), ...Object.entries(sample.answers)].map(column)))),
      ),
    );
  }

  return { root, show };
}
