// Train: rows are dropped, looked at as the base sees them, and trained into a tone while the server goes on answering; what comes out
// is examined and published by the server.

import { get, json, post } from "./api.js";
import { ceiling } from "./chart.js";
import { add, confirm, el, empty, failure, put, svg, toast } from "./dom.js";
import { about, bytes, number, when } from "./format.js";
import { promptsField, timeline } from "./samples.js";
import { trial } from "./trial.js";

/** How often jobs are looked at, in milliseconds: often while one is under way. */
const EVERY = { under_way: 1500, idle: 10000 };
/** Events of a page, and the most pages that are read back. */
const [PAGE, PAGES] = [100, 40];
/** Rows that are shown. */
const ROWS = 4;

/** Rows to begin with. */
const EXAMPLE = [
  ["Where is my order #12345?", "Oh, how exciting, #12345 is nearly with you! Let me find out just where it is."],
  ["Can I return these shoes?", "Of course you can! Send them back in the box they came in, and we are happy to help."],
  ["My parcel is damaged.", "Oh no, that must not be! A quick photo, and a new one sets out to you today."],
]
  .map(([instruction, output]) => `${JSON.stringify({ instruction, output })}\n`)
  .join("");

const OVER = ["succeeded", "failed", "cancelled"];

export function train(studio) {
  const stage = el("div.stack");
  const jobs = el("div.stack");
  const file = el("input.hide-from-sight", { type: "file", accept: ".jsonl,.json,application/jsonl", tabindex: -1, "aria-hidden": "true", onchange: (event) => take(event.target.files[0]) });
  const place = el(
    "div.drop",
    {
      ondragover: (event) => {
        event.preventDefault();
        place.dataset.over = "";
      },
      ondragleave: () => delete place.dataset.over,
      ondrop: (event) => {
        event.preventDefault();
        delete place.dataset.over;
        take(event.dataTransfer.files[0]);
      },
    },
    el("p", {}, el("b", {}, "Rows for a new tone"), el("span.soft", {}, " – drop a JSONL file here, one question and answer a line. Every line is checked before anything is trained.")),
    el("button", { type: "button", onclick: () => file.click() }, "Choose a file"),
    file,
  );
  const example = el("a", { href: URL.createObjectURL(new Blob([EXAMPLE], { type: "application/jsonl" })), download: "example.jsonl" }, "Save an example");
  const shape = el("p.small.soft", {}, "Each line is one question with the answer in your tone: ", el("code", {}, '{"instruction": "Where is my order?", "output": "It is on its way."}'), ". A line may also have ", el("code", {}, "messages"), ", ", el("code", {}, "prompt"), " and ", el("code", {}, "completion"), "; for preferences ", el("code", {}, "chosen"), " and ", el("code", {}, "rejected"), ". ", example, " and write on from it.");
  const root = el("section.view", { "aria-label": "Train" }, el("h1", {}, "Train a tone"), place, shape, stage, el("h2", {}, "Jobs"), jobs);

  let timer = 0;
  let visible = false;
  const cards = new Map();

  /* Rows */

  async function take(chosen) {
    file.value = "";
    if (!chosen) return;
    put(stage, el("div.panel", {}, el("p", {}, `Sending ${chosen.name} and checking its lines …`)));
    const form = new FormData();
    form.append("purpose", "fine-tune");
    form.append("file", chosen, chosen.name);
    try {
      const kept = await json("POST", "/v1/files", form);
      const where = `/v1/files/${kept.id}`;
      const [report, rows] = await Promise.all([get(`${where}/lint`), get(`${where}/rows?first=1&limit=${ROWS}`)]);
      prepare(kept, report, rows);
    } catch (error) {
      put(stage, failure(Object.assign(error, { title: `${chosen.name} is not taken` })));
    }
  }

  function prepare(kept, report, rows) {
    put(
      stage,
      el(
        "section.panel.stack",
        {},
        el("div.row.between", {}, el("h2", {}, kept.filename), el("span.soft.small", {}, `${number(kept.rows)} ${kept.pairs ? "pairs" : "rows"}, ${bytes(kept.bytes)}`)),
        findings(report),
        el("details", { open: true }, el("summary", {}, "Rows as the base sees them; the marked part is trained"), el("div.rows", {}, rows.data.map(shown))),
        settings(kept),
      ),
    );
  }

  function findings(report) {
    if (!report.findings.length) return el("p", {}, el("span.tag.on", {}, "nothing found"), ` in ${number(report.rows)} rows`);
    const counts = new Map();
    for (const one of report.findings) counts.set(one.problem, (counts.get(one.problem) ?? 0) + 1);
    return el(
      "details",
      {},
      el("summary", {}, [...counts].map(([problem, count]) => el("span.tag.warn", {}, `${problem.replaceAll("_", " ")}: ${count}`)), el("span.small", {}, " Worth a look; training goes ahead all the same.")),
      el("ul.small", {}, report.findings.slice(0, 50).map((one) => el("li", {}, `line ${one.line}: ${one.problem.replaceAll("_", " ")}`, one.about && ` – ${one.about}`))),
    );
  }

  const shown = (row) =>
    el(
      "figure.rendered",
      {},
      el("figcaption.small.soft", {}, `line ${row.line}`, row.held_out && ", held out", `, ${row.answer.tokens} tokens, ${row.answer.trained_tokens} trained`, row.answer.fate !== "whole" && `, ${row.answer.reason ?? row.answer.fate.replace("_", " ")}`),
      el("pre", {}, row.answer.parts.map((part) => (part.trained ? el("mark", {}, part.text) : part.text))),
      row.rejected && el("pre", { "aria-label": "rejected" }, row.rejected.parts.map((part) => (part.trained ? el("del", {}, part.text) : part.text))),
    );

  /* Settings and the plan */

  function settings(kept) {
    // What the file is called is a first guess.
    const guess = kept.filename.toLowerCase().replace(/\.[a-z]+$/, "").replace(/[^a-z0-9_-]+/g, "-").replace(/^[-_]+|-+$/g, "").slice(0, 64);
    const name = el("input", { name: "suffix", required: true, pattern: "[a-z0-9][a-z0-9_\\-]{0,63}", title: "1 to 64 of a-z, 0-9, - and _, beginning with a letter or a digit", autocomplete: "off", value: guess, oninput: () => naming() });
    const meaning = el("small");
    const waiting = el("span.soft");
    const naming = () => {
      const there = studio.personas.includes(name.value);
      waiting.textContent = ` – otherwise it waits, and you publish it when you have ${there ? "heard it beside the one in service" : "read what it answers"}`;
      meaning.textContent = !name.value ? "Clients will ask for it by this name." : there ? `A new version of ${name.value}, which is there already.` : "A new one: clients will ask for it by this name.";
    };
    naming();
    const publish = el("input", { type: "checkbox", checked: true });
    const from = el("select", { name: "model" }, el("option", { value: studio.base }, `the base (${studio.base})`), studio.personas.map((one) => el("option", { value: one }, one)));
    const prompts = promptsField();
    const plan = el("p.plan", { role: "status" });
    const form = el(
      "form.stack.tight",
      { onsubmit: start, onchange: () => draft() },
      el(
        "div.settings",
        {},
        el("label.field", {}, "Name of the tone", name, meaning),
        el("label.field", {}, "Passes over the rows", el("input", { type: "number", name: "n_epochs", min: 1, max: 100, value: "3" }), el("small", {}, "More learn the rows better, and take longer.")),
        prompts.field,
      ),
      prompts.own,
      el("label.check", {}, publish, el("span", {}, "Publish it when it is ready", waiting)),
      el(
        "details",
        {},
        el("summary", {}, "More settings"),
        el(
          "div.settings",
          {},
          el("label.field", {}, "Starts from", from),
          el("label.field", {}, "Rows of a step", el("input", { type: "number", name: "batch_size", min: 1, max: 256, value: "8" })),
          el("label.field", {}, "Rank (size of the adapter)", el("input", { type: "number", name: "rank", min: 1, max: 256, value: "16" })),
          el("label.field", {}, "Learning rate, × the default", el("input", { type: "number", name: "learning_rate_multiplier", min: 0.01, max: 100, step: 0.01, value: "1" })),
        ),
      ),
      el(
        "details",
        {},
        el("summary", {}, "System prompt, and what it must measure up to"),
        el("label.field", {}, "System prompt (stands before rows that bring none, and becomes the persona's)", el("textarea", { name: "system_prompt", rows: 2 })),
        el(
          "div.settings",
          {},
          el("label.field", {}, "An answer matches (a regular expression)", el("input", { name: "any_of", placeholder: "(?i)thank you" })),
          el("label.field", {}, "None matches", el("input", { name: "none_of" })),
          el("label.field", {}, "In at least this share of answers", el("input", { type: "number", name: "tone_at_least", min: 0, max: 1, step: 0.01, value: "0.95" })),
          el("label.field", {}, "Identifiers right in at least", el("input", { type: "number", name: "copied_at_least", min: 0, max: 1, step: 0.01, placeholder: "0.90" })),
        ),
      ),
      plan,
      el("div.row", {}, el("button.primary", { type: "submit" }, "Train"), el("button.plain", { type: "button", onclick: () => forget(kept) }, "Forget the file")),
    );

    function body() {
      const data = new FormData(form);
      const numbers = ["n_epochs", "batch_size", "learning_rate_multiplier"].concat(from.value === studio.base ? ["rank"] : []);
      const hyperparameters = Object.fromEntries(numbers.filter((key) => data.get(key) !== "").map((key) => [key, Number(data.get(key))]));
      const asked = { model: data.get("model"), training_file: kept.id, hyperparameters, ...prompts.asked() };
      if (data.get("suffix")) asked.suffix = data.get("suffix");
      if (data.get("system_prompt").trim()) asked.system_prompt = data.get("system_prompt").trim();
      if (kept.pairs) asked.method = { type: "dpo" };
      const gate = {};
      if (data.get("any_of")) gate.any_of = [data.get("any_of")];
      if (data.get("none_of")) gate.none_of = [data.get("none_of")];
      if (gate.any_of || gate.none_of) gate.tone_at_least = Number(data.get("tone_at_least"));
      if (data.get("copied_at_least")) gate.copied_at_least = Number(data.get("copied_at_least"));
      if (Object.keys(gate).length) asked.gate = gate;
      if (!publish.checked) asked.publish = false;
      return asked;
    }

    let latest = 0;
    async function draft(wanted = false) {
      latest += 1;
      const mine = latest;
      if (wanted) put(plan, "Measuring a step, to say how long it takes …");
      try {
        const found = await post("/v1/fine_tuning/plan", body());
        if (mine !== latest) return;
        const steps = found.plan?.steps ?? found.plan?.adapters?.[0]?.steps;
        const facts = [
          steps !== undefined && `${number(steps)} steps`,
          `${number(found.tokens)} tokens`,
          `${bytes(found.memory_needed)} of memory`,
        ].filter(Boolean);
        plan.className = "plan";
        put(plan, el("b", {}, found.seconds ? `About ${about(found.seconds)}` : "The time is known after its first steps"), `: ${facts.join(", ")}. Requests are answered meanwhile, and go first.`);
      } catch (error) {
        if (mine !== latest) return;
        plan.className = "plan wrong";
        plan.textContent = error.message;
      }
    }

    async function start(event) {
      event.preventDefault();
      try {
        const job = await post("/v1/fine_tuning/jobs", body());
        put(stage);
        toast(`${job.lory.persona} is on its way`);
        await look();
      } catch (error) {
        plan.className = "plan wrong";
        plan.textContent = error.message;
      }
    }
    // How long it takes is known before anything is started.
    draft(true);
    return form;
  }

  async function forget(kept) {
    await json("DELETE", `/v1/files/${kept.id}`).catch((error) => toast(error.message, "bad"));
    put(stage);
  }

  /* Jobs */

  async function look() {
    clearTimeout(timer);
    let listed;
    try {
      listed = (await get("/v1/fine_tuning/jobs?limit=20")).data;
    } catch (error) {
      const title = error.status === 403 ? "Training is for keys that may train" : undefined;
      // A server that is away says so in the banner; the jobs stay.
      if (error.status !== 0) put(jobs, failure(title ? Object.assign(new Error(error.message), { title }) : error, look));
      if (visible) timer = setTimeout(look, EVERY.idle);
      return;
    }
    if (!listed.length) put(jobs, empty("No jobs yet", "Drop rows above: they are trained here, beside the answers."));
    else {
      for (const job of listed) {
        if (!cards.has(job.id)) cards.set(job.id, card(job.id));
        cards.get(job.id).update(job);
      }
      const nodes = listed.map((job) => cards.get(job.id).node);
      // Put anew only where something came or went: what is open or has the focus stays so.
      if (nodes.length !== jobs.children.length || nodes.some((node, at) => jobs.children[at] !== node)) put(jobs, nodes);
    }
    const busy = listed.some((job) => !OVER.includes(job.status) && job.status !== "paused");
    if (visible) timer = setTimeout(look, busy ? EVERY.under_way : EVERY.idle);
  }

  function card(id) {
    const title = el("h3");
    const tag = el("span.tag");
    const bar = el("progress", { max: 1, "aria-label": "Progress" });
    const line = el("p.small.soft.num");
    const actions = el("div.row");
    const said = el("ol.history");
    const curve = losses();
    const answers = timeline(id);
    const gate = el("ul.small");
    const heard = el("details", { hidden: true }, el("summary", {}, "What it answers to questions that it did not learn from"));
    const outcome = trial(studio, look);
    const node = el("article.panel.job", {}, el("div.row.between", {}, el("div.row", {}, title, tag), actions), bar, line, curve.node, answers.node, gate, heard, outcome.node, el("details", {}, el("summary", {}, "What happened"), said));
    const events = new Map();
    let drawn = "";
    let wasOver = null;

    async function update(job) {
      const { progress } = job.lory;
      const refused = job.error?.code === "gate_refused";
      const state = refused ? "missed its thresholds" : progress.phase && job.status === "running" ? progress.phase : job.status.replace("_", " ");
      put(title, job.fine_tuned_model ?? job.lory.persona);
      put(tag, state);
      tag.className = `tag ${{ succeeded: "on", failed: "off", running: "warn" }[job.status] ?? ""}`;
      bar.value = job.status === "succeeded" ? 1 : progress.steps ? progress.step / progress.steps : 0;
      const left = progress.estimated_finish && job.status === "running" ? progress.estimated_finish - Date.now() / 1000 : null;
      put(
        line,
        [
          progress.steps > 0 && `step ${number(progress.step)} of ${number(progress.steps)}`,
          progress.train_loss !== null && `loss ${progress.train_loss.toFixed(3)}`,
          progress.best_validation_loss !== null && `best on held-out rows ${progress.best_validation_loss.toFixed(3)}`,
          progress.tokens_per_s !== null && !OVER.includes(job.status) && `${number(progress.tokens_per_s)} tokens/s`,
          left > 0 && `about ${about(left)} left`,
          job.finished_at && when(job.finished_at),
        ]
          .filter(Boolean)
          .join(" · ") || "It waits for its turn.",
      );
      outcome.update(job);
      if (heard.hidden && job.lory.samples.length) {
        heard.hidden = false;
        add(heard, job.lory.samples.map((one) => el("section.sample", {}, el("p.asked", {}, one.question), el("div.sides", {}, side("It answers", one.answer), side("The row answers", one.reference)))));
      }
      put(gate, job.error && !refused && el("li.wrong", {}, job.error.message), job.lory.gate.map((one) => el("li", {}, el(`span.tag.${one.passed ? "on" : "off"}`, {}, one.passed ? "passed" : "missed"), ` ${one.said}`)));
      buttons(job);
      const over = OVER.includes(job.status);
      const now = `${job.status} ${progress.step} ${progress.phase}`;
      if (now !== drawn) {
        drawn = now;
        const well = await Promise.all([read(), answers.read(over)]);
        // The next look asks again.
        if (well.includes(false)) drawn = "";
      }
      if (over && wasOver === false) {
        const well = job.fine_tuned_model ? `${job.fine_tuned_model} is published` : `${job.lory.persona} is trained, and waits to be published`;
        toast(job.status === "succeeded" ? well : `${job.lory.persona}: ${job.status}`, job.status === "succeeded" ? "good" : "bad");
        studio.refresh().catch(() => {});
      }
      wasOver = over;
    }

    /** The newest events, back to those that are known; whether that went well. */
    async function read() {
      let after = "";
      for (let page = 0; page < PAGES; page += 1) {
        let some;
        try {
          some = await get(`/v1/fine_tuning/jobs/${id}/events?limit=${PAGE}${after}`);
        } catch {
          return false;
        }
        const known = some.data.some((event) => events.has(event.id));
        for (const event of some.data) events.set(event.id, event);
        if (known || !some.has_more) break;
        after = `&after=${some.data.at(-1).id}`;
      }
      const all = [...events.values()].sort((a, b) => a.created_at - b.created_at || (a.data?.step ?? 0) - (b.data?.step ?? 0));
      curve.draw(all.filter((event) => event.data).map((event) => event.data));
      put(said, all.filter((event) => !event.data || event.data.full_valid_loss !== undefined).reverse().slice(0, 40).map((event) => el("li", {}, el("span.soft", {}, when(event.created_at)), " ", event.message)));
      return true;
    }

    function buttons(job) {
      const act = (verb) => async () => {
        if (verb === "cancel") {
          const sure = await confirm({ title: `Give ${job.lory.persona} up?`, body: el("p", {}, "What it has learnt so far is thrown away."), yes: "Give it up", danger: true });
          if (!sure) return;
        }
        await post(`/v1/fine_tuning/jobs/${id}/${verb}`).catch((error) => toast(error.message, "bad"));
        await look();
      };
      const wanted = {
        validating_files: ["cancel"],
        queued: ["pause", "cancel"],
        running: ["pause", "cancel"],
        paused: ["resume", "cancel"],
      }[job.status] ?? [];
      const key = job.status;
      if (actions.dataset.for === key) return;
      actions.dataset.for = key;
      const words = { pause: "Pause", resume: "Go on", cancel: "Give up …" };
      put(actions, wanted.map((verb) => el("button.small", { type: "button", onclick: act(verb) }, words[verb])));
    }
    return { node, update };
  }

  const side = (title, text) => el("div", {}, el("h4.small.soft", {}, title), el("p.said", {}, text));

  /** Training loss by step as a line, validation loss as points. */
  function losses() {
    const [width, height] = [600, 140];
    const line = svg("path", { fill: "none", "stroke-width": 2, "vector-effect": "non-scaling-stroke", class: "trained" });
    const points = svg("path", { fill: "none", "stroke-width": 7, "stroke-linecap": "round", "vector-effect": "non-scaling-stroke", class: "validated" });
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": "Loss" }, [0, height / 2, height].map((y) => svg("line", { class: "grid", x1: 0, x2: width, y1: y, y2: y })), line, points);
    const most = el("span.most.num");
    const node = el("figure", { hidden: true }, el("div.plot.loss", {}, picture, most), el("figcaption.small.soft", {}, el("i.key.trained"), "loss on the rows that it learns from, ", el("i.key.validated"), "on rows held out to check it. Lower is better."));
    function draw(metrics) {
      const trained = metrics.filter((one) => typeof one.train_loss === "number");
      const validated = metrics.filter((one) => typeof one.full_valid_loss === "number");
      node.hidden = !trained.length;
      if (!trained.length) return;
      const steps = Math.max(...metrics.map((one) => one.total_steps), 1);
      const limit = ceiling(Math.max(...trained.map((one) => one.train_loss), ...validated.map((one) => one.full_valid_loss)));
      const x = (one) => ((one.step / steps) * width).toFixed(1);
      const y = (loss) => (height - (loss / limit) * height).toFixed(1);
      line.setAttribute("d", trained.map((one, at) => `${at ? "L" : "M"}${x(one)} ${y(one.train_loss)}`).join(""));
      points.setAttribute("d", validated.map((one) => `M${x(one)} ${y(one.full_valid_loss)}h0`).join(""));
      most.textContent = String(limit);
      const last = trained.at(-1);
      picture.setAttribute("aria-label", `Loss: ${last.train_loss.toFixed(3)} after step ${last.step} of ${steps}`);
    }
    return { node, draw };
  }

  return {
    root,
    show() {
      visible = true;
      look();
    },
    hide() {
      visible = false;
      clearTimeout(timer);
    },
  };
}
