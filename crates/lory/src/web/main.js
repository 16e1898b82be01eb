// The frame: which view is shown, the colours, the key, whether the server is there. Each view is a module of its own and knows
// nothing of the others.

import { get, key, onKeyWanted, state } from "./api.js";
import { confirm, el, put } from "./dom.js";
import { evaluate } from "./evaluate.js";
import { listen } from "./listen.js";
import { personas } from "./personas.js";
import { train } from "./train.js";
import { watch } from "./watch.js";

/** How often the server is asked whether it is there, in milliseconds: seldom while it is, often while it is not. */
const LOOK = { ready: 5000, other: 1500 };

const main = document.getElementById("main");

/** What all views share. Views subscribe to `changed`, which is fired when personas may have changed. */
const studio = {
  /** The base's name, once known. */
  base: null,
  /** Names that may be asked, personas only. */
  personas: [],
  /** The variables of those that have any: their defaults, or `{ required: true }`. */
  variables: new Map(),
  /** Whether the key may administer; null while that is not known. */
  admin: null,
  events: new EventTarget(),
  /** Reads again who is there. */
  async refresh() {
    const models = (await get("/v1/models")).data;
    studio.base = models.find((model) => model.parent === null)?.id ?? models[0]?.parent ?? null;
    studio.baseAllowed = models.some((model) => model.parent === null);
    const personas = models.filter((model) => model.parent !== null);
    studio.personas = personas.map((model) => model.id);
    studio.variables = new Map(personas.map((model) => [model.id, model.variables ?? {}]));
    studio.events.dispatchEvent(new Event("changed"));
  },
  /** The colour of a speaker: the base is grey, personas have one each in the order of their names. */
  tone(name) {
    const place = studio.personas.indexOf(name.split("@")[0]);
    return place < 0 ? "var(--tone-base)" : `var(--tone-${place % 6})`;
  },
};

const views = { listen, personas, train, evaluate, watch };
for (const link of document.querySelectorAll(".tabs a")) link.hidden = !(link.dataset.view in views);
const tabs = () => [...document.querySelectorAll(".tabs a:not([hidden])")];
const shown = new Map();
let current = null;

function show() {
  const [wanted, ...rest] = location.hash.slice(1).split("/").map(decodeURIComponent);
  const name = wanted in views ? wanted : "listen";
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (current === name) {
    shown.get(name).show?.(rest);
    return;
  }
  shown.get(current)?.hide?.();
  if (!shown.has(name)) shown.set(name, views[name](studio));
  const view = shown.get(name);
  put(main, view.root);
  current = name;
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · Lory studio`;
  view.show?.(rest);
}

/* Colours */

const THEMES = {
  system: { next: "light", said: "Colours: as the system has them", icon: "◐" },
  light: { next: "dark", said: "Colours: light", icon: "☀" },
  dark: { next: "system", said: "Colours: dark", icon: "☾" },
};
const themeButton = document.getElementById("theme");
function theme(name) {
  document.documentElement.dataset.theme = name;
  themeButton.textContent = THEMES[name].icon;
  themeButton.setAttribute("aria-label", `${THEMES[name].said}. Change`);
  themeButton.title = THEMES[name].said;
}
themeButton.addEventListener("click", () => {
  const { next } = THEMES[document.documentElement.dataset.theme];
  theme(next);
  try {
    localStorage.setItem("lory.theme", next);
  } catch {
    // It holds for this page then.
  }
});
theme(document.documentElement.dataset.theme in THEMES ? document.documentElement.dataset.theme : "system");

/* The key */

const keyButton = document.getElementById("key");
let asking = null;
function askForKey() {
  asking ??= confirm({
    title: key.get() ? "The server does not take this key" : "This server wants a key",
    body: [
      el("p", {}, "Keys are made with ", el("code", {}, "lory key new NAME"), ". The page keeps it until this tab is closed."),
      el("label.field", {}, "Key", el("input", { type: "password", name: "key", autocomplete: "off", required: true })),
    ],
    yes: "Use this key",
  }).then((form) => {
    asking = null;
    const given = form?.get("key")?.trim();
    if (!given) return false;
    key.set(given);
    keyButton.hidden = false;
    return true;
  });
  return asking;
}
onKeyWanted(askForKey);
keyButton.hidden = !key.get();
keyButton.addEventListener("click", async () => {
  const form = await confirm({
    title: "The key of this tab",
    body: el("p", {}, "Forget it, and the page asks for another one when the server wants it."),
    yes: "Forget the key",
  });
  if (!form) return;
  key.set("");
  location.reload();
});

/* Whether the server is there */

const stateLine = document.getElementById("state");
const banner = document.getElementById("banner");
const SAID = {
  loading: ["The base is loading", "The server is loading its base. The page goes on by itself when it is there."],
  stopping: ["Stopping", "The server is stopping. The page goes on by itself when it is back."],
  away: ["No answer", "Nothing answers at this address. The page goes on by itself when the server is back."],
};
let was = null;
async function look() {
  const now = await state();
  if (now.is !== was) {
    stateLine.dataset.is = now.is;
    stateLine.lastElementChild.textContent = now.is === "ready" ? now.base : SAID[now.is][0];
    stateLine.title = now.is === "ready" ? `Ready, serving ${now.base}` : SAID[now.is][1];
    banner.hidden = now.is === "ready";
    banner.textContent = now.is === "ready" ? "" : SAID[now.is][1];
    was = now.is;
    if (now.is === "ready") {
      await studio.refresh().catch(() => {
        // The views say what is wrong when they ask.
        studio.events.dispatchEvent(new Event("changed"));
      });
      // What failed while the server was away is asked anew.
      if (current) shown.get(current).show?.([]);
    }
  }
  // The first view comes when it is known who is there.
  if (!current) show();
  setTimeout(look, now.is === "ready" ? LOOK.ready : LOOK.other);
}

/* The keyboard */

function help() {
  const keys = [
    [`1 – ${tabs().length}`, tabs().map((link) => link.textContent).join(", ")],
    ["/", "Write a prompt"],
    ["Ctrl Enter", "Ask"],
    ["Esc", "Stop the answers"],
    ["?", "This list"],
  ];
  return confirm({
    title: "Keyboard",
    body: el("div.keys", {}, keys.map(([name, what]) => [el("kbd", {}, name), el("span", {}, what)])),
    yes: "Good",
  });
}
document.getElementById("help").addEventListener("click", help);
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const link = tabs()[Number(event.key) - 1];
  if (link) {
    location.hash = link.hash;
    main.focus();
  } else if (event.key === "?") {
    help();
  } else if (event.key === "/") {
    event.preventDefault();
    location.hash = "#listen";
    show();
    document.getElementById("prompt")?.focus();
  }
});

addEventListener("hashchange", show);
look();
