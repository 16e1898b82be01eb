// The page's frame: the tabs and the view that is shown, the theme, the API key, the server's status and the keyboard. Each view is its
// own module; views must not know each other.

import { get, key, onKeyRequired, serverStatus } from "./api.js";
import { el, openDialog, setChildren } from "./dom.js";
import { evaluate } from "./evaluate.js";
import { monitor } from "./monitor.js";
import { personas } from "./personas.js";
import { playground } from "./playground.js";
import { train } from "./train.js";

/** How often the server's status is polled, in milliseconds. */
const POLL = { ready: 5000, other: 1500 };

const main = document.getElementById("main");

/** State that all views share. Listen to `changed` on `events`: it fires when the list of personas may have changed. */
const studio = {
  /** The base model's name, once it is known. */
  base: null,
  /** Whether this key may send requests to the base itself. */
  baseAllowed: false,
  /** The names of the personas that this key may use. */
  personas: [],
  /** Persona name -> its system prompt's variables, each a default value or `{ required: true }`. */
  variables: new Map(),
  events: new EventTarget(),
  /** Reads the list of personas again. */
  async refresh() {
    const models = (await get("/v1/models")).data;
    studio.base = models.find((model) => model.parent === null)?.id ?? models[0]?.parent ?? null;
    studio.baseAllowed = models.some((model) => model.parent === null);
    const personas = models.filter((model) => model.parent !== null);
    studio.personas = personas.map((model) => model.id);
    studio.variables = new Map(personas.map((model) => [model.id, model.variables ?? {}]));
    studio.events.dispatchEvent(new Event("changed"));
  },
  /** A persona's colour, by its place in the list; the base is grey. */
  color(name) {
    const index = studio.personas.indexOf(name.split("@")[0]);
    return index < 0 ? "var(--palette-base)" : `var(--palette-${index % 6})`;
  },
};

/* Views */

const views = { playground, personas, train, evaluate, monitor };
/** Earlier fragments of views, which bookmarks may still use. */
const RENAMED = { listen: "playground", watch: "monitor" };
const tabs = [...document.querySelectorAll(".tabs a")];
const opened = new Map();
let current = null;

function showView() {
  const [fragment, ...rest] = location.hash.slice(1).split("/").map(decodeURIComponent);
  const wanted = RENAMED[fragment] ?? fragment;
  const name = wanted in views ? wanted : "playground";
  for (const link of tabs) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (current === name) {
    opened.get(name).show?.(rest);
    return;
  }
  opened.get(current)?.hide?.();
  if (!opened.has(name)) opened.set(name, views[name](studio));
  const view = opened.get(name);
  setChildren(main, view.root);
  current = name;
  document.title = `${tabs.find((link) => link.dataset.view === name).textContent} · Lory studio`;
  view.show?.(rest);
}

/* Theme */

const THEMES = {
  system: { next: "light", icon: "◐" },
  light: { next: "dark", icon: "☀" },
  dark: { next: "system", icon: "☾" },
};
const themeButton = document.getElementById("theme");
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  themeButton.textContent = THEMES[name].icon;
  themeButton.setAttribute("aria-label", `Theme: ${name}. Change`);
  themeButton.title = `Theme: ${name}`;
}
themeButton.addEventListener("click", () => {
  const { next } = THEMES[document.documentElement.dataset.theme];
  setTheme(next);
  try {
    localStorage.setItem("lory.theme", next);
  } catch {
    // Storage may be disabled; the theme then lasts until the page is closed.
  }
});
setTheme(document.documentElement.dataset.theme in THEMES ? document.documentElement.dataset.theme : "system");

/* API key */

const keyButton = document.getElementById("key");
let pendingKey = null;
/** Asks for a key once, however many requests need it. Resolves to whether one was entered. */
function requestKey() {
  pendingKey ??= openDialog({
    title: key.get() ? "The server rejected this key" : "This server requires an API key",
    body: [
      el("p", {}, "Create a key with ", el("code", {}, "lory key new NAME"), ". The page keeps it until you close this tab."),
      el("label.field", {}, "API key", el("input", { type: "password", name: "key", autocomplete: "off", required: true })),
    ],
    confirm: "Use this key",
  }).then((form) => {
    pendingKey = null;
    const entered = form?.get("key")?.trim();
    if (!entered) return false;
    key.set(entered);
    keyButton.hidden = false;
    return true;
  });
  return pendingKey;
}
onKeyRequired(requestKey);
keyButton.hidden = !key.get();
keyButton.addEventListener("click", async () => {
  const form = await openDialog({
    title: "Remove the API key from this tab?",
    body: el("p", {}, "The page asks for a key again when the server requires one."),
    confirm: "Remove key",
  });
  if (!form) return;
  key.set("");
  location.reload();
});

/* Server status */

const statusLine = document.getElementById("server-status");
const banner = document.getElementById("banner");
const STATUS = {
  loading: ["Loading model", "The server is loading the base model. This page continues automatically when it is ready."],
  stopping: ["Shutting down", "The server is shutting down. This page reconnects automatically."],
  unreachable: ["Not connected", "The server does not respond. This page reconnects automatically."],
};
let lastStatus = null;
async function pollStatus() {
  const { status, base } = await serverStatus();
  if (status !== lastStatus) {
    const ready = status === "ready";
    const [label, message] = ready ? [base, ""] : STATUS[status];
    statusLine.dataset.status = status;
    statusLine.lastElementChild.textContent = label;
    statusLine.title = ready ? `Ready, serving ${base}` : message;
    banner.hidden = ready;
    banner.textContent = message;
    lastStatus = status;
    if (ready) {
      await studio.refresh().catch(() => {
        // The views show the error of their own requests.
        studio.events.dispatchEvent(new Event("changed"));
      });
      // Repeats what failed while the server was not ready.
      if (current) opened.get(current).show?.([]);
    }
  }
  // The first view opens once the personas are known.
  if (!current) showView();
  setTimeout(pollStatus, status === "ready" ? POLL.ready : POLL.other);
}

/* Keyboard */

function showShortcuts() {
  const shortcuts = [
    [`1 – ${tabs.length}`, tabs.map((link) => link.textContent).join(", ")],
    ["/", "Write a prompt"],
    ["Ctrl Enter", "Generate"],
    ["Esc", "Stop generating"],
    ["?", "Show this list"],
  ];
  return openDialog({
    title: "Keyboard shortcuts",
    body: el("div.shortcuts", {}, shortcuts.map(([keys, action]) => [el("kbd", {}, keys), el("span", {}, action)])),
    confirm: "Close",
    cancel: null,
  });
}
document.getElementById("help").addEventListener("click", showShortcuts);
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const link = tabs[Number(event.key) - 1];
  if (link) {
    location.hash = link.hash;
    main.focus();
  } else if (event.key === "?") {
    showShortcuts();
  } else if (event.key === "/") {
    event.preventDefault();
    location.hash = "#playground";
    showView();
    document.getElementById("prompt")?.focus();
  }
});

// The link's fragment is not a view: following it would open the first one.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", showView);
pollStatus();
