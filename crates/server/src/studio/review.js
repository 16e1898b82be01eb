// The outcome of a training job: compares the new adapter with the current version, publishes it, or rolls it back. Must not know how the
// job is trained.

import { get, personaPath, post } from "./api.js";
import { comparison } from "./compare.js";
import { el, openDialog, setChildren, toast } from "./dom.js";
import { EXAMPLE_PROMPTS } from "./example-prompts.js";

/** The outcome part of a job's card. `onChange` is called after something was published or rolled back. */
export function review(studio, onChange) {
  const actions = el("div.row");
  const stage = el("div.stack.tight");
  const node = el("div.stack.tight", { hidden: true }, actions, stage);
  let job = null;
  /** The persona as it is served now; null where it is not published, or where the key may not see it. */
  let served = null;
  let drawn = "";

  async function update(latest) {
    const state = `${latest.status} ${latest.fine_tuned_model} ${latest.lory.kept}`;
    job = latest;
    if (state === drawn) return;
    drawn = state;
    node.hidden = !job.lory.kept && !job.fine_tuned_model;
    if (!node.hidden) await draw();
  }

  async function draw() {
    // A new name is not requested: it would be a 404. A key that may not see versions can still compare by name.
    const exists = job.fine_tuned_model || studio.personas.includes(job.lory.persona);
    served = exists ? await get(personaPath(job.lory.persona)).catch(() => null) : null;
    if (job.lory.kept) drawUnpublished();
    else await drawPublished();
  }

  function drawUnpublished() {
    const { persona } = job.lory;
    const gateFailed = job.status === "failed";
    setChildren(
      actions,
      el(
        "span.muted",
        {},
        gateFailed ? "The eval gate failed, so the adapter was not published." : "The adapter is ready and not published yet.",
        !studio.personas.includes(persona) && " After publishing you can compare it with other personas, and remove it again.",
      ),
      el("span.spacer"),
      served &&
        el(
          "button.small",
          { type: "button", title: "Publishes the adapter as a new version that is not current, then compares the two", onclick: compareWithCurrent },
          `Compare with ${persona}@${served.version}`,
        ),
      el("button.small.primary", { type: "button", onclick: () => publish(true) }, gateFailed ? "Publish anyway …" : "Publish"),
    );
  }

  async function drawPublished() {
    const { persona } = job.lory;
    const version = Number(job.fine_tuned_model.split("@")[1]);
    const isCurrent = !served || served.version === version;
    const other = isCurrent ? await versionBefore(version) : served.version;
    setChildren(
      actions,
      el("span.muted", {}, isCurrent ? `${job.fine_tuned_model} is the current version of ${persona}.` : `${job.fine_tuned_model} is published but not current: ${persona} uses version ${served.version}.`),
      el("span.spacer"),
      // Clients use the bare name, so the link has a version only where the name means another one.
      el("a.button", { href: `#playground/${encodeURIComponent(isCurrent ? persona : job.fine_tuned_model)}` }, "Try it"),
      el("button.small", { type: "button", onclick: () => compareWith(other) }, other ? `Compare with ${persona}@${other}` : "Compare"),
      served && !isCurrent && el("button.small", { type: "button", onclick: () => setCurrent(version) }, "Make current"),
      served && isCurrent && other && el("button.small", { type: "button", onclick: () => setCurrent(other) }, `Roll back to ${persona}@${other}`),
    );
  }

  /** The newest existing version before `version`. */
  async function versionBefore(version) {
    const versions = await get(personaPath(job.lory.persona, "versions")).catch(() => ({ data: [] }));
    return versions.data.map((one) => one.version).find((one) => one < version) ?? null;
  }

  /** Opens the comparison with another version of the persona, or with the base where there is none. */
  function compareWith(version) {
    const { persona } = job.lory;
    const base = studio.baseAllowed ? [studio.base] : [];
    const others = studio.personas.filter((name) => name !== persona);
    const models = [...new Set([...(version ? [`${persona}@${version}`] : []), job.fine_tuned_model, ...base, ...others])];
    const left = version ? `${persona}@${version}` : (base[0] ?? others[0] ?? job.fine_tuned_model);
    const prompts = [...new Set([...job.lory.samples.map((sample) => sample.question), ...EXAMPLE_PROMPTS.slice(0, 3)])];
    const panel = comparison({ studio, models, left, right: job.fine_tuned_model, prompts });
    setChildren(stage, panel.node);
    panel.generate();
  }

  /** Publishes the adapter as a version that is not current, and opens the comparison with the current one. */
  async function compareWithCurrent() {
    const { persona } = job.lory;
    const inFolder = served.source !== "registry";
    const currentVersion = inFolder ? 1 : served.version;
    if (inFolder) {
      const confirmed = await openDialog({
        title: `Publish ${persona} from its folder first?`,
        body: el("p", {}, `${persona} exists only in the server's personas folder. It becomes version 1, which stays current. The trained adapter becomes version 2.`),
        confirm: "Publish both",
      });
      if (!confirmed) return;
      try {
        await post(personaPath(persona, "versions"), { from_folder: true });
      } catch (error) {
        toast(error.message, "bad");
        return;
      }
    }
    if (await publish(false)) compareWith(currentVersion);
  }

  /** Publishes the adapter; whether it was published. */
  async function publish(current) {
    const { persona, gate } = job.lory;
    if (current && job.status === "failed") {
      const confirmed = await openDialog({
        title: `Publish ${persona} although the eval gate failed?`,
        body: el("ul.small", {}, gate.filter((check) => !check.passed).map((check) => el("li", {}, check.said))),
        confirm: "Publish",
        danger: true,
      });
      if (!confirmed) return false;
    }
    try {
      const published = await post(`/v1/fine_tuning/jobs/${job.id}/publish`, { current });
      toast(current ? `Published ${published.fine_tuned_model}` : `Published ${published.fine_tuned_model}; the current version stays`);
      await update(published);
    } catch (error) {
      toast(error.message, "bad");
      return false;
    }
    await notify();
    return true;
  }

  async function setCurrent(version) {
    const { persona } = job.lory;
    try {
      await post(personaPath(persona, "rollback"), { version });
      toast(`${persona} now uses version ${version}`);
    } catch (error) {
      toast(error.message, "bad");
    }
    await draw();
    await notify();
  }

  const notify = () => Promise.all([studio.refresh().catch(() => {}), onChange()]);

  return { node, update };
}
