// Small words for making elements. Text is always set as text: nothing that a model or a server says becomes markup.

/**
 * An element: `el("p.note", {id: "x", onclick: f}, "text", child)`. Properties that are functions become listeners; `null` and
 * `false` leave an attribute out, `true` sets it bare.
 */
export function el(name, properties, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties ?? {})) {
    // ARIA's false is a word; elsewhere it is no attribute.
    if (value === null || value === undefined || (value === false && !key.startsWith("aria-"))) continue;
    if (typeof value === "function") node.addEventListener(key.replace(/^on/, ""), value);
    else if (key === "value" || key === "checked" || key === "disabled") node[key] = value;
    else if (key === "style") for (const [name, text] of Object.entries(value)) node.style.setProperty(name, text);
    else node.setAttribute(key, value === true && !key.startsWith("aria-") ? "" : String(value));
  }
  add(node, children);
  return node;
}

/** Adds children: nodes, texts, lists of them; nothing for null and false. */
export function add(node, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

/** Puts children in the place of all that is there. */
export function put(node, ...children) {
  node.replaceChildren();
  return add(node, children);
}

/** An element of SVG, which has a namespace of its own. */
export function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined) node.setAttribute(key, String(value));
  }
  return add(node, children);
}

/** A line that goes away by itself, read out by screen readers. */
export function toast(text, kind = "good") {
  const node = el(`p.toast.${kind}`, {}, text);
  document.getElementById("toasts").append(node);
  setTimeout(() => node.remove(), 6000);
}

/** A picture of nothing being there, with what to do about it. Its title is no heading: it stands wherever it is needed. */
export function empty(title, ...more) {
  return el("div.empty", {}, el("p.title", {}, title), ...more.map((one) => (typeof one === "string" ? el("p", {}, one) : one)));
}

/** A wide thing that scrolls sideways in its own frame, by the keyboard too. */
export function scroller(label, wide) {
  return el("div.scroll", { tabindex: 0, role: "region", "aria-label": label }, wide);
}

/** An error as a person reads it. */
export function failure(error, again) {
  return el(
    "div.empty.bad",
    { role: "alert" },
    el("p.title", {}, error.title ?? "That did not work"),
    el("p", {}, error.message),
    again && el("button", { type: "button", onclick: again }, "Try again"),
  );
}

/**
 * Asks in a dialog, and resolves to what was answered: `true`, a form's data where `body` has fields, or `null`.
 * @returns {Promise<FormData | null>}
 */
export function confirm({ title, body, yes, danger = false }) {
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
        el("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
        el(`button.${danger ? "danger" : "primary"}`, { type: "submit", value: "yes" }, yes),
      ),
    );
    const dialog = el("dialog.ask", { "aria-labelledby": id }, form);
    let answer = null;
    form.addEventListener("submit", () => {
      answer = new FormData(form);
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
    // A dialog that destroys something does not begin on the button that does it.
    (form.querySelector("input, textarea, select") ?? form.querySelector("button"))?.focus();
  });
}

/** Copies a text, and says so. */
export async function copy(text, what = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
    toast(what);
  } catch {
    // Without HTTPS beyond this machine there is no clipboard.
    toast("The browser does not let this page copy; select the text instead", "bad");
  }
}

/** Runs `work` when nobody has called for `ms`. */
export function debounce(work, ms) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), ms);
  };
}
