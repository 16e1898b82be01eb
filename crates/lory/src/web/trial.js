// What a job made, beside what is in service: both heard, and then it is published, or the name goes back.

import { get, post } from "./api.js";
import { comparison } from "./compare.js";
import { confirm, el, put, toast } from "./dom.js";

const PROMPTS = ["What is the status of my order #12345?", "My parcel arrived with a dent. What now?", "Can I return shoes that I have worn once?"];

const path = (name, ...rest) => ["/v1/personas", encodeURIComponent(name), ...rest].join("/");

/** The part of a job's card for its outcome. `changed` is called when something was published or taken back. */
export function trial(studio, changed) {
  const actions = el("div.row");
  const stage = el("div.stack.tight");
  const node = el("div.stack.tight", { hidden: true }, actions, stage);
  let job = null;
  /** What the name means now; null where it is not published, or the key may not know. */
  let service = null;
  let drawn = "";

  async function update(latest) {
    const key = `${latest.status} ${latest.fine_tuned_model} ${latest.lory.kept}`;
    job = latest;
    if (key === drawn) return;
    drawn = key;
    node.hidden = !job.lory.kept && !job.fine_tuned_model;
    if (!node.hidden) await draw();
  }

  async function draw() {
    // Who may not see versions still hears the new one beside the others. A name that is not there is not asked for.
    service = job.fine_tuned_model || studio.personas.includes(job.lory.persona) ? await get(path(job.lory.persona)).catch(() => null) : null;
    const { persona, kept } = job.lory;
    const refused = job.status === "failed";
    if (kept) {
      put(
        actions,
        el("span.soft", {}, refused ? "Its gate refused it; it is kept and not published." : "It is kept, and not published yet.", !studio.personas.includes(persona) && " Once it is published it can be heard beside the others, and removed again."),
        el("span.grow"),
        service && el("button.small", { type: "button", onclick: beside }, `Hear it beside ${persona}@${service.version}`),
        el("button.small.primary", { type: "button", onclick: () => publish(true) }, refused ? "Publish it anyway …" : "Publish it"),
      );
      return;
    }
    const number = Number(job.fine_tuned_model.split("@")[1]);
    const isCurrent = !service || service.version === number;
    const before = isCurrent ? await earlier(number) : service.version;
    put(
      actions,
      el("span.soft", {}, isCurrent ? `${persona} means ${job.fine_tuned_model} now.` : `${persona} means version ${service.version}; ${job.fine_tuned_model} waits.`),
      el("span.grow"),
      // The name is what clients ask for; a version is named only where it is another one.
      el("a.button", { href: `#listen/${encodeURIComponent(isCurrent ? persona : job.fine_tuned_model)}` }, "Listen"),
      el("button.small", { type: "button", onclick: () => compare(before) }, before ? `Compare with ${persona}@${before}` : "Compare"),
      service && !isCurrent && el("button.small", { type: "button", onclick: () => turn(number) }, "Make it current"),
      service && isCurrent && before && el("button.small", { type: "button", onclick: () => turn(before) }, `Go back to ${persona}@${before}`),
    );
  }

  /** The newest version before `number` that is still there. */
  async function earlier(number) {
    const versions = await get(path(job.lory.persona, "versions")).catch(() => ({ data: [] }));
    return versions.data.map((one) => one.version).find((version) => version < number) ?? null;
  }

  function compare(before) {
    const { persona } = job.lory;
    const base = studio.baseAllowed ? [studio.base] : [];
    const others = studio.personas.filter((name) => name !== persona);
    const speakers = [...new Set([...(before ? [`${persona}@${before}`] : []), job.fine_tuned_model, ...base, ...others])];
    const left = before ? `${persona}@${before}` : (base[0] ?? others[0] ?? job.fine_tuned_model);
    const prompts = [...new Set([...job.lory.samples.map((one) => one.question), ...PROMPTS])];
    const both = comparison({ studio, speakers, left, right: job.fine_tuned_model, prompts });
    put(stage, both.node);
    both.ask();
  }

  /** Publishes it as a version that waits, and opens the comparison with the one in service. */
  async function beside() {
    const { persona } = job.lory;
    const inFolder = service.source !== "registry";
    const stays = inFolder ? 1 : service.version;
    if (inFolder) {
      const sure = await confirm({
        title: `Publish ${persona} as it is first?`,
        body: el("p", {}, `${persona} lies in the server's folder only. It becomes version 1, which stays in service, and what was trained becomes version 2, which waits.`),
        yes: "Publish both",
      });
      if (!sure) return;
      try {
        await post(path(persona, "versions"), { from_folder: true });
      } catch (error) {
        toast(error.message, "bad");
        return;
      }
    }
    if (await publish(false)) compare(stays);
  }

  async function publish(current) {
    const { persona, gate } = job.lory;
    if (current && job.status === "failed") {
      const sure = await confirm({
        title: `Publish ${persona} although it missed its thresholds?`,
        body: el("ul.small", {}, gate.filter((one) => !one.passed).map((one) => el("li", {}, one.said))),
        yes: "Publish it",
        danger: true,
      });
      if (!sure) return false;
    }
    try {
      const done = await post(`/v1/fine_tuning/jobs/${job.id}/publish`, { current });
      toast(current ? `${done.fine_tuned_model} is published` : `${done.fine_tuned_model} waits beside the one in service`);
      await update(done);
    } catch (error) {
      toast(error.message, "bad");
      return false;
    }
    await after();
    return true;
  }

  async function turn(version) {
    const { persona } = job.lory;
    try {
      await post(path(persona, "rollback"), { version });
      toast(`${persona} is version ${version} from the next request on`);
    } catch (error) {
      toast(error.message, "bad");
    }
    await draw();
    await after();
  }

  const after = () => Promise.all([studio.refresh().catch(() => {}), changed()]);

  return { node, update };
}
