// Helpers that make elements, messages and dialogs. Text is always set as text: nothing from a model or a server becomes markup.
// Must not know the server.

/**
 * Makes an element: `el("p.note", {id: "x", onclick: f}, "text", child)`. A function becomes a listener, `null` and `false` leave an
 * attribute out, and `true` sets it without a value.
 */
export function el(name, properties, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties ?? {})) {
    // ARIA attributes take the word "false"; others are left out.
    if (value === null || value === undefined || (value === false && !key.startsWith("aria-"))) continue;
    if (typeof value === "function") node.addEventListener(key.replace(/^on/, ""), value);
    else if (key === "value" || key === "checked" || key === "disabled") node[key] = value;
    else if (key === "style") for (const [name, text] of Object.entries(value)) node.style.setProperty(name, text);
    else node.setAttribute(key, value === true && !key.startsWith("aria-") ? "" : String(value));
  }
  append(node, children);
  return node;
}

/** Appends nodes, texts and lists of them; skips null and false. */
export function append(node, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

/** Replaces all children. */
export function setChildren(node, ...children) {
  node.replaceChildren();
  return append(node, children);
}

/** Makes an SVG element. */
export function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined) node.setAttribute(key, String(value));
  }
  return append(node, children);
}

/** Shows a short message for six seconds; screen readers read it out. */
export function toast(text, kind = "good") {
  const node = el(`p.toast.${kind}`, {}, text);
  document.getElementById("toasts").append(node);
  setTimeout(() => node.remove(), 6000);
}

/** A placeholder for an empty list, with what to do about it. Its title is not a heading, so it fits under any heading level. */
export function emptyState(title, ...more) {
  return el("div.empty", {}, el("p.title", {}, title), ...more.map((one) => (typeof one === "string" ? el("p", {}, one) : one)));
}

/** An error with an optional retry button. `titles` maps an HTTP status to a title that is more specific than the error's own. */
export function errorState(error, retry, titles = {}) {
  return el(
    "div.empty.bad",
    { role: "alert" },
    el("p.title", {}, titles[error.status] ?? error.title ?? "Something went wrong"),
    el("p", {}, error.message),
    retry && el("button", { type: "button", onclick: retry }, "Try again"),
  );
}

/** Wraps a wide element so that it scrolls sideways in its own frame, also by keyboard. */
export function scrollable(label, wide) {
  return el("div.scroll", { tabindex: 0, role: "region", "aria-label": label }, wide);
}

/** An area for dropped files: `onDrop` receives the DataTransfer. */
export function dropzone(onDrop, ...children) {
  const node = el(
    "div.dropzone",
    {
      ondragover: (event) => {
        event.preventDefault();
        node.dataset.dragOver = "";
      },
      ondragleave: () => delete node.dataset.dragOver,
      ondrop: (event) => {
        event.preventDefault();
        delete node.dataset.dragOver;
        onDrop(event.dataTransfer);
      },
    },
    children,
  );
  return node;
}

/** A hidden file input; a button opens it with `click()`. `onFiles` receives the chosen files, if there are any. */
export function fileInput(attributes, onFiles) {
  return el("input.visually-hidden", {
    type: "file",
    tabindex: -1,
    "aria-hidden": "true",
    ...attributes,
    onchange: (event) => {
      const files = [...event.target.files];
      // Without this, choosing the same file again would not be a change.
      event.target.value = "";
      if (files.length) onFiles(files);
    },
  });
}

/**
 * Opens a dialog and resolves to its form data when the user confirms, or to `null`. `confirm` and `cancel` are the buttons' labels; a
 * dialog without `cancel` has one button.
 * @returns {Promise<FormData | null>}
 */
export function openDialog({ title, body, confirm, cancel = "Cancel", danger = false }) {
  return new Promise((resolve) => {
    const id = `d${Math.random().toString(36).slice(2)}`;
    const form = el(
      "form",
      { method: "dialog" },
      el("h2", { id }, title),
      el("div.body", {}, body),
      el(
        "div.actions",
        {},
        cancel && el("button", { type: "button", onclick: () => dialog.close() }, cancel),
        el(`button.${danger ? "danger" : "primary"}`, { type: "submit", value: "yes" }, confirm),
      ),
    );
    const dialog = el("dialog.modal", { "aria-labelledby": id }, form);
    let result = null;
    form.addEventListener("submit", () => {
      result = new FormData(form);
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
    // Focus the first field, or else the cancel button, so that Enter does not confirm a deletion.
    (form.querySelector("input, textarea, select") ?? form.querySelector("button"))?.focus();
  });
}

/** Copies a text to the clipboard and shows a message. */
export async function copyText(text, message = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
    toast(message);
  } catch {
    // Browsers offer the clipboard to HTTPS pages and to localhost only.
    toast("The browser does not allow copying here. Select the text and copy it instead.", "bad");
  }
}

/** Runs `work` once no call has come for `ms` milliseconds. */
export function debounce(work, ms) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), ms);
  };
}
