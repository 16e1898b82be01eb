// One training job: its status, progress, losses, sampled answers, eval gate and events, with pause, resume and cancel. Must not know the
// other jobs.

import { get, post } from "./api.js";
import { append, el, openDialog, setChildren, toast } from "./dom.js";
import { approximateDuration, number, relativeTime } from "./format.js";
import { lossChart } from "./loss-chart.js";
import { review } from "./review.js";
import { sampleHistory } from "./samples.js";

/** Events per request, and how many requests read back to the start of a job at most. */
const [EVENTS_PER_PAGE, MAX_PAGES] = [100, 40];
/** How many events the log shows. */
const LISTED_EVENTS = 40;

export const isOver = (job) => ["succeeded", "failed", "cancelled"].includes(job.status);

/** What can be done with a job, by its status. */
const ACTIONS = {
  validating_files: ["cancel"],
  queued: ["pause", "cancel"],
  running: ["pause", "cancel"],
  paused: ["resume", "cancel"],
};
const ACTION_LABELS = { pause: "Pause", resume: "Resume", cancel: "Cancel …" };
/** Labels of the phases of a running job, where they differ from the API's word. */
const PHASE_LABELS = { examining: "evaluating" };

/** The card of the job `id`. `onChange` is called after an action changed a job. */
export function trainingJob({ studio, id, onChange }) {
  const title = el("h3");
  const tag = el("span.tag");
  const bar = el("progress", { max: 1, "aria-label": "Progress" });
  const progressLine = el("p.small.muted.numeric");
  const actions = el("div.row");
  const log = el("ol.history");
  const losses = lossChart();
  const samples = sampleHistory(id);
  const gate = el("ul.small");
  const heldOut = el("details", { hidden: true }, el("summary", {}, "Answers to held-out questions"));
  const outcome = review(studio, onChange);
  const node = el(
    "article.panel.job",
    {},
    el("div.row.between", {}, el("div.row", {}, title, tag), actions),
    bar,
    progressLine,
    losses.node,
    samples.node,
    gate,
    heldOut,
    outcome.node,
    el("details", {}, el("summary", {}, "Event log"), log),
  );
  const events = new Map();
  let drawn = "";
  let wasOver = null;

  async function update(job) {
    const { progress } = job.lory;
    drawStatus(job);
    outcome.update(job);
    drawHeldOut(job.lory.samples);
    drawGate(job);
    drawActions(job);
    const over = isOver(job);
    const state = `${job.status} ${progress.step} ${progress.phase}`;
    if (state !== drawn) {
      drawn = state;
      const complete = await Promise.all([readEvents(), samples.read(over)]);
      // A failed request is repeated with the next update.
      if (complete.includes(false)) drawn = "";
    }
    if (over && wasOver === false) announceEnd(job);
    wasOver = over;
  }

  function drawStatus(job) {
    const { progress, persona } = job.lory;
    const phase = job.status === "running" && progress.phase;
    setChildren(title, job.fine_tuned_model ?? persona);
    setChildren(tag, gateFailed(job) ? "eval gate failed" : phase ? (PHASE_LABELS[phase] ?? phase) : job.status.replace("_", " "));
    tag.className = `tag ${{ succeeded: "on", failed: "off", running: "warn" }[job.status] ?? ""}`;
    bar.value = job.status === "succeeded" ? 1 : progress.steps ? progress.step / progress.steps : 0;
    const left = progress.estimated_finish && job.status === "running" ? progress.estimated_finish - Date.now() / 1000 : null;
    const facts = [
      progress.steps > 0 && `step ${number(progress.step)} of ${number(progress.steps)}`,
      progress.train_loss !== null && `loss ${progress.train_loss.toFixed(3)}`,
      progress.best_validation_loss !== null && `best validation loss ${progress.best_validation_loss.toFixed(3)}`,
      progress.tokens_per_s !== null && !isOver(job) && `${number(progress.tokens_per_s)} tokens/s`,
      left > 0 && `about ${approximateDuration(left)} left`,
      job.finished_at && relativeTime(job.finished_at),
    ];
    setChildren(progressLine, facts.filter(Boolean).join(" · ") || "Waiting in the queue.");
  }

  function drawHeldOut(answered) {
    if (!heldOut.hidden || !answered.length) return;
    heldOut.hidden = false;
    const column = (heading, text) => el("div", {}, el("h4.small.muted", {}, heading), el("p.quote", {}, text));
    append(heldOut, answered.map(({ question, answer, reference }) => el("section.sample", {}, el("p.prompt-text", {}, question), el("div.columns", {}, column("Model's answer", answer), column("Answer in the data", reference)))));
  }

  const gateFailed = (job) => job.error?.code === "gate_refused";

  function drawGate(job) {
    setChildren(
      gate,
      job.error && !gateFailed(job) && el("li.error", {}, job.error.message),
      job.lory.gate.map((check) => el("li", {}, el(`span.tag.${check.passed ? "on" : "off"}`, {}, check.passed ? "passed" : "missed"), ` ${check.said}`)),
    );
  }

  function drawActions(job) {
    if (actions.dataset.status === job.status) return;
    actions.dataset.status = job.status;
    setChildren(actions, (ACTIONS[job.status] ?? []).map((action) => el("button.small", { type: "button", onclick: () => perform(action, job) }, ACTION_LABELS[action])));
  }

  async function perform(action, job) {
    if (action === "cancel") {
      const confirmed = await openDialog({
        title: `Cancel the training of ${job.lory.persona}?`,
        body: el("p", {}, "What it has learned so far is deleted."),
        confirm: "Cancel training",
        cancel: "Keep training",
        danger: true,
      });
      if (!confirmed) return;
    }
    await post(`/v1/fine_tuning/jobs/${id}/${action}`).catch((error) => toast(error.message, "bad"));
    await onChange();
  }

  function announceEnd(job) {
    const { persona } = job.lory;
    if (job.status !== "succeeded") toast(`${persona}: ${job.status}`, "bad");
    else toast(job.fine_tuned_model ? `Published ${job.fine_tuned_model}` : `${persona} is trained and not published yet`);
    studio.refresh().catch(() => {});
  }

  /** Reads the newest events, back to the first known one; whether every request succeeded. */
  async function readEvents() {
    let after = "";
    for (let page = 0; page < MAX_PAGES; page += 1) {
      let listed;
      try {
        listed = await get(`/v1/fine_tuning/jobs/${id}/events?limit=${EVENTS_PER_PAGE}${after}`);
      } catch {
        return false;
      }
      const known = listed.data.some((event) => events.has(event.id));
      for (const event of listed.data) events.set(event.id, event);
      if (known || !listed.has_more) break;
      after = `&after=${listed.data.at(-1).id}`;
    }
    const all = [...events.values()].sort((a, b) => a.created_at - b.created_at || (a.data?.step ?? 0) - (b.data?.step ?? 0));
    losses.draw(all.filter((event) => event.data).map((event) => event.data));
    // Events of single steps are in the chart only.
    const listed = all.filter((event) => !event.data || event.data.full_valid_loss !== undefined).reverse().slice(0, LISTED_EVENTS);
    setChildren(log, listed.map((event) => el("li", {}, el("span.muted", {}, relativeTime(event.created_at)), " ", event.message)));
    return true;
  }

  return { node, update };
}
