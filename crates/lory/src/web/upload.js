// Adding an adapter: a PEFT folder or a zip of one, dropped or chosen. The server says first what it holds and whether it would run;
// only then it is published.

import { json, post } from "./api.js";
import { el, failure, put, toast } from "./dom.js";
import { bytes, number, short } from "./format.js";
import { zip } from "./zip.js";

/** The files of an adapter; what else lies in a folder stays at home. */
const WANTED = ["adapter_config.json", "adapter_model.safetensors", "README.md"];

/** The files of what was dropped, folders opened, as `[{ name, file }]` with the path as name. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = [];
  async function walk(entry) {
    if (entry.isFile) {
      files.push({ name: entry.fullPath.replace(/^\//, ""), file: await new Promise((good, bad) => entry.file(good, bad)) });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      // A reader gives at most a hundred at a time.
      const some = await new Promise((good, bad) => reader.readEntries(good, bad));
      if (!some.length) return;
      for (const one of some) await walk(one);
    }
  }
  for (const entry of entries) await walk(entry);
  return files;
}

/** One body for the server: a zip as it is, other files packed. */
async function archive(files) {
  const zipped = files.find(({ name }) => name.toLowerCase().endsWith(".zip"));
  if (zipped && files.length === 1) return new Blob([zipped.file], { type: "application/zip" });
  const wanted = files.filter(({ name }) => WANTED.includes(name.split("/").at(-1)));
  if (!wanted.length) {
    const said = "There is no adapter_config.json and no adapter_model.safetensors in it. Choose the folder that PEFT saved, or a zip of it.";
    throw Object.assign(new Error(said), { title: "That is no adapter" });
  }
  return zip(wanted);
}

/** The place to drop on, and what comes after. `names` are those that there are; `done` is called after something was published. */
export function uploader({ names, done }) {
  const result = el("div", { "aria-live": "polite" });
  const folder = el("input.hide-from-sight", { type: "file", webkitdirectory: true, tabindex: -1, "aria-hidden": "true", onchange: chosen });
  const file = el("input.hide-from-sight", { type: "file", accept: ".zip,application/zip", tabindex: -1, "aria-hidden": "true", onchange: chosen });
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
        take(dropped(event.dataTransfer));
      },
    },
    el("p", {}, el("b", {}, "Add an adapter"), el("span.soft", {}, " – drop a PEFT folder or a zip of one here. It is looked at first, and nothing is published.")),
    el("div.row", {}, el("button", { type: "button", onclick: () => folder.click() }, "Choose a folder"), el("button", { type: "button", onclick: () => file.click() }, "Choose a zip")),
    folder,
    file,
  );
  const root = el("div.stack", {}, place, result);

  function chosen(event) {
    const files = [...event.target.files].map((one) => ({ name: one.webkitRelativePath || one.name, file: one }));
    event.target.value = "";
    if (files.length) take(Promise.resolve(files));
  }

  async function take(files) {
    put(result, el("div.panel", {}, el("p", {}, "Sending and looking at it …")));
    try {
      const body = await archive(await files);
      report(await json("POST", "/v1/adapters", body, { headers: { "content-type": "application/zip" } }));
    } catch (error) {
      put(result, failure(Object.assign(error, { title: error.title ?? "This adapter is refused" })));
    }
  }

  function report(found) {
    const facts = [
      ["Content hash", el("span.mono", { title: found.sha256 }, short(found.sha256))],
      ["Rank, alpha", `${found.rank}, ${number(found.alpha)}`],
      ["Changes", `${found.modules.join(", ")} in ${found.layers} layers`],
      ["Numbers", `${number(found.parameters)} in ${found.pairs} pairs, ${found.dtype}, ${bytes(found.bytes)}`],
      ["Base", found.base_sha256 ? el("span", {}, `${found.base_name ?? ""} `, el("span.mono", { title: found.base_sha256 }, short(found.base_sha256))) : (found.base_name ?? "it does not say")],
      found.passed_over.length > 0 && ["Passed over", found.passed_over.join(", ")],
    ].filter(Boolean);
    const list = el("datalist", { id: "persona-names" }, names().map((name) => el("option", { value: name })));
    const name = el("input", { name: "name", required: true, pattern: "[a-z0-9_\\-]{1,64}", title: "1 to 64 of a-z, 0-9, - and _", list: "persona-names", autocomplete: "off" });
    const form = el(
      "form.stack.tight",
      { onsubmit: publish },
      el("div.row", {}, el("label.field", {}, "Publish it as", name, list), el("label.check", {}, el("input", { type: "checkbox", name: "current", checked: true }), "The name means it from now on")),
      el("details", {}, el("summary", {}, "Settings of a new persona"), el("label.field", {}, "System prompt", el("textarea", { name: "system_prompt", rows: 3 })), el("label.field", {}, "Description", el("input", { name: "description", maxlength: 200 }))),
      el("div.row", {}, el("button.primary", { type: "submit" }, "Publish"), el("button", { type: "button", onclick: forget }, "Discard")),
    );
    put(
      result,
      el(
        "section.panel.stack",
        { "aria-label": "What was sent" },
        el("div.row", {}, el("h2", {}, "What was sent"), el(`span.tag.${found.fits ? "on" : "off"}`, {}, found.fits ? "runs on this base" : "does not run here")),
        el("dl.facts", {}, facts.map(([what, value]) => [el("dt", {}, what), el("dd", {}, value)])),
        found.fits ? form : [el("p.wrong", { role: "alert" }, found.problem), el("div.row", {}, el("button", { type: "button", onclick: forget }, "Discard"))],
      ),
    );
    name.focus();

    async function publish(event) {
      event.preventDefault();
      const data = new FormData(form);
      const body = { upload: found.sha256, current: data.get("current") === "on" };
      const given = Object.fromEntries(["system_prompt", "description"].map((key) => [key, data.get(key).trim()]).filter(([, text]) => text));
      if (Object.keys(given).length) body.settings = given;
      try {
        const { version } = await post(`/v1/personas/${encodeURIComponent(data.get("name"))}/versions`, body);
        put(result);
        toast(`${data.get("name")}@${version} is published`);
        done();
      } catch (error) {
        toast(error.message, "bad");
      }
    }

    async function forget() {
      put(result);
      await json("DELETE", `/v1/adapters/${found.sha256}`).catch(() => {
        // It is forgotten in time anyway.
      });
    }
  }

  return { root };
}
