// Uploads an adapter: a PEFT folder, or a zip of one, dropped or chosen. The server checks it first; it is published only after the user
// confirms. Must not know the list of personas that it is part of.

import { json, personaPath, post } from "./api.js";
import { dropzone, el, errorState, fileInput, setChildren, toast } from "./dom.js";
import { bytes, number, shortHash } from "./format.js";
import { zip } from "./zip.js";

/** The files of an adapter. Other files in a folder are not uploaded. */
const ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "README.md"];

/** The dropped files and the files in dropped folders, each `{ name, file }` with its path as the name. */
async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = [];
  async function walk(entry) {
    if (entry.isFile) {
      files.push({ name: entry.fullPath.replace(/^\//, ""), file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      // A reader returns at most a hundred entries at a time.
      const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!batch.length) return;
      for (const one of batch) await walk(one);
    }
  }
  for (const entry of entries) await walk(entry);
  return files;
}

/** The upload's body: a zip as it is, or the adapter's files as a zip. */
async function toArchive(files) {
  const zipped = files.find(({ name }) => name.toLowerCase().endsWith(".zip"));
  if (zipped && files.length === 1) return new Blob([zipped.file], { type: "application/zip" });
  const adapter = files.filter(({ name }) => ADAPTER_FILES.includes(name.split("/").at(-1)));
  if (!adapter.length) {
    const message = "It contains no adapter_config.json and no adapter_model.safetensors. Choose the folder that PEFT saved, or a zip of it.";
    throw Object.assign(new Error(message), { title: "This is not an adapter" });
  }
  return zip(adapter);
}

/** The drop area and what follows it. `personaNames` returns the existing names; `onPublish` is called after a version was published. */
export function adapterUpload({ personaNames, onPublish }) {
  const result = el("div", { "aria-live": "polite" });
  const upload = (files) => check(Promise.resolve(files.map((file) => ({ name: file.webkitRelativePath || file.name, file }))));
  const folder = fileInput({ webkitdirectory: true }, upload);
  const archive = fileInput({ accept: ".zip,application/zip" }, upload);
  const area = dropzone(
    (transfer) => check(droppedFiles(transfer)),
    el("p", {}, el("b", {}, "Add an adapter"), el("span.muted", {}, " – drop a PEFT adapter folder or a zip of one here. The server checks it before anything is published.")),
    el("div.row", {}, el("button", { type: "button", onclick: () => folder.click() }, "Choose folder"), el("button", { type: "button", onclick: () => archive.click() }, "Choose zip")),
    folder,
    archive,
  );
  const root = el("div.stack", {}, area, result);

  /** Uploads the files and shows what the server found in them. */
  async function check(files) {
    setChildren(result, el("div.panel", {}, el("p", {}, "Uploading and checking the adapter …")));
    try {
      const body = await toArchive(await files);
      showReport(await json("POST", "/v1/adapters", body, { headers: { "content-type": "application/zip" } }));
    } catch (error) {
      setChildren(result, errorState(Object.assign(error, { title: error.title ?? "The adapter was rejected" })));
    }
  }

  function showReport(report) {
    const base = report.base_name ?? (report.base_sha256 ? "" : "not recorded");
    const facts = [
      ["Content hash", el("span.mono", { title: report.sha256 }, shortHash(report.sha256))],
      ["Rank, alpha", `${report.rank}, ${number(report.alpha)}`],
      ["Target modules", `${report.modules.join(", ")} in ${report.layers} layers`],
      ["Parameters", `${number(report.parameters)} in ${report.pairs} pairs, ${report.dtype}, ${bytes(report.bytes)}`],
      ["Base model", report.base_sha256 ? el("span", {}, `${base} `, el("span.mono", { title: report.base_sha256 }, shortHash(report.base_sha256))) : base],
      report.passed_over.length > 0 && ["Ignored files", report.passed_over.join(", ")],
    ].filter(Boolean);
    const form = report.fits && publishForm(report);
    setChildren(
      result,
      el(
        "section.panel.stack",
        { "aria-label": "Uploaded adapter" },
        el("div.row", {}, el("h2", {}, "Uploaded adapter"), el(`span.tag.${report.fits ? "on" : "off"}`, {}, report.fits ? "runs on this base model" : "does not run on this base model")),
        el("dl.facts", {}, facts.map(([label, value]) => [el("dt", {}, label), el("dd", {}, value)])),
        form || [el("p.error", { role: "alert" }, report.problem), el("div.row", {}, el("button", { type: "button", onclick: () => discard(report) }, "Discard"))],
      ),
    );
    if (form) form.elements.name.focus();
  }

  function publishForm(report) {
    const names = el("datalist", { id: "persona-names" }, personaNames().map((name) => el("option", { value: name })));
    const name = el("input", { name: "name", required: true, pattern: "[a-z0-9_\\-]{1,64}", title: "1 to 64 characters: a-z, 0-9, - and _", list: "persona-names", autocomplete: "off" });
    const form = el(
      "form.stack.tight",
      { onsubmit: publish },
      el("div.row", {}, el("label.field", {}, "Publish as", name, names), el("label.check", {}, el("input", { type: "checkbox", name: "current", checked: true }), "Make it the current version")),
      el("details", {}, el("summary", {}, "Settings for a new persona"), el("label.field", {}, "System prompt", el("textarea", { name: "system_prompt", rows: 3 })), el("label.field", {}, "Description", el("input", { name: "description", maxlength: 200 }))),
      el("div.row", {}, el("button.primary", { type: "submit" }, "Publish"), el("button", { type: "button", onclick: () => discard(report) }, "Discard")),
    );

    async function publish(event) {
      event.preventDefault();
      const data = new FormData(form);
      const body = { upload: report.sha256, current: data.get("current") === "on" };
      const settings = Object.fromEntries(["system_prompt", "description"].map((field) => [field, data.get(field).trim()]).filter(([, text]) => text));
      if (Object.keys(settings).length) body.settings = settings;
      try {
        const { version } = await post(personaPath(data.get("name"), "versions"), body);
        setChildren(result);
        toast(`Published ${data.get("name")}@${version}`);
        onPublish();
      } catch (error) {
        toast(error.message, "bad");
      }
    }
    return form;
  }

  async function discard(report) {
    setChildren(result);
    await json("DELETE", `/v1/adapters/${report.sha256}`).catch(() => {
      // The server deletes unpublished uploads after an hour anyway.
    });
  }

  return { root };
}
