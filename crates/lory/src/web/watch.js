// Watch: what the server does now, from its own counters. It asks only while it is shown.

import { get } from "./api.js";
import { chart } from "./chart.js";
import { el, failure, put, scroller } from "./dom.js";
import { bytes, milliseconds, number, percent, short } from "./format.js";
import { quantile, rate, read, sum } from "./metrics.js";

/** How often the counters are read, in milliseconds. */
const EVERY = 2000;
/** Latencies are of the last so many readings: of few requests, two seconds hold none. */
const WINDOW = 15;

const seconds = (value) => milliseconds(value * 1000);

export function watch(studio) {
  const charts = {
    requests: chart({ title: "Requests", lines: [{ name: "running", color: "var(--tone-1)" }, { name: "waiting", color: "var(--tone-0)" }], say: number }),
    tokens: chart({ title: "Tokens a second", lines: [{ name: "sampled", color: "var(--tone-2)" }, { name: "read", color: "var(--tone-3)" }], say: number }),
    first: chart({ title: "Time to the first token", lines: [{ name: "p50", color: "var(--tone-1)" }, { name: "p95", color: "var(--tone-0)" }], say: seconds }),
    between: chart({ title: "From token to token", lines: [{ name: "p50", color: "var(--tone-1)" }, { name: "p95", color: "var(--tone-0)" }], say: seconds }),
    cache: chart({ title: "Keys and values", lines: [{ name: "in use", color: "var(--tone-4)" }, { name: "cached", color: "var(--tone-5)" }], say: percent, top: 1 }),
    pool: chart({ title: "Memory for adapters", lines: [{ name: "taken", color: "var(--tone-3)" }], say: percent, top: 1 }),
  };
  const tiles = {};
  const tile = (key, what) => {
    tiles[key] = el("dd.num", {}, "–");
    return el("div.tile", {}, el("dt", {}, what), tiles[key]);
  };
  const overview = el(
    "dl.tiles",
    {},
    tile("answered", "Answered"),
    tile("refused", "Refused or failed"),
    tile("sampled", "Tokens sampled"),
    tile("cached", "Prompt tokens from the cache"),
    tile("preempted", "Preemptions"),
  );
  const adapters = el("tbody");
  const traffic = el("tbody");
  const problem = el("div");
  const numbers = el(
    "div.stack",
    {},
    overview,
    el("h2.hide-from-sight", {}, "Over time"),
    el("div.charts", {}, Object.values(charts).map((one) => one.node)),
    el(
      "div.below",
      {},
      el("section.panel", {}, el("h2", {}, "Adapters"), scroller("Adapters", el("table", {}, el("thead", {}, el("tr", {}, ["Adapter", "Who", "Memory", "In use by"].map((name) => el("th", { scope: "col" }, name)))), adapters))),
      el("section.panel", {}, el("h2", {}, "Traffic by persona"), scroller("Traffic by persona", el("table", {}, el("thead", {}, el("tr", {}, ["Persona", "Requests", "Tokens in", "Tokens out"].map((name) => el("th", { scope: "col" }, name)))), traffic))),
    ),
  );
  const root = el(
    "section.view",
    { "aria-label": "Watch" },
    el("h1", {}, "What the server does now"),
    el("p.lead", {}, "Read from ", el("a", { href: "/metrics" }, "/metrics"), " every two seconds while this view is open; latencies are of the last half minute."),
    problem,
    numbers,
  );

  let timer = 0;
  let readings = [];
  let controller = null;

  async function look() {
    controller = new AbortController();
    const options = { signal: controller.signal };
    try {
      const [now, listed] = await Promise.all([read(options), get("/v1/lora_adapters", options)]);
      put(problem);
      numbers.hidden = false;
      draw(now, listed);
    } catch (error) {
      if (error.name === "AbortError") return;
      // A server that is away says so in the banner; the charts stay.
      if (error.status === 403) {
        put(problem, failure(Object.assign(new Error("The counters are for keys with admin rights."), { title: "This key may not watch" })));
        numbers.hidden = true;
        return;
      }
      readings = [];
    }
    timer = setTimeout(look, EVERY);
  }

  function draw(now, listed) {
    const before = readings.at(-1);
    const long = readings.at(-WINDOW) ?? readings[0];
    readings.push(now);
    if (readings.length > WINDOW) readings.shift();
    const ends = (labels) => ["stop", "length"].includes(labels.outcome);
    const bad = (labels) => !ends(labels) && labels.outcome !== "cancelled";
    put(tiles.answered, number(sum(now, "lory_requests_total", ends)));
    put(tiles.refused, number(sum(now, "lory_requests_total", bad)));
    put(tiles.sampled, number(sum(now, "lory_sampled_tokens_total")));
    put(tiles.preempted, number(sum(now, "lory_preemptions_total")));
    const hits = sum(now, "lory_prefix_cache_hit_tokens_total");
    const prompts = sum(now, "lory_prompt_tokens_total");
    put(tiles.cached, prompts ? percent(hits / prompts) : "–");
    charts.requests.push(sum(now, "lory_requests_running"), sum(now, "lory_requests_waiting"));
    const blocks = Math.max(sum(now, "lory_kv_blocks"), 1);
    charts.cache.push(sum(now, "lory_kv_blocks_used") / blocks, sum(now, "lory_kv_blocks_cached") / blocks);
    charts.pool.push(sum(now, "lory_adapter_memory_bytes") / Math.max(sum(now, "lory_adapter_memory_limit_bytes"), 1));
    if (before) {
      charts.tokens.push(rate(before, now, "lory_sampled_tokens_total"), rate(before, now, "lory_prefill_rows_total"));
      for (const [name, metric] of [["first", "lory_time_to_first_token_seconds"], ["between", "lory_inter_token_time_seconds"]]) {
        charts[name].push(quantile(long, now, metric, 0.5), quantile(long, now, metric, 0.95));
      }
    }
    put(
      adapters,
      listed.data.length
        ? listed.data.map((one) =>
            el(
              "tr",
              {},
              el("td.mono", { title: one.sha256 }, short(one.sha256)),
              el("td", {}, one.names.map((name) => `${name.name}@${name.version}`).join(", ") || "removed"),
              el("td.num", {}, one.loading ? "being read" : one.resident ? bytes(one.bytes) : el("span.soft", {}, "on disk")),
              el("td.num", {}, one.leases ? number(one.leases) : el("span.soft", {}, "nobody")),
            ),
          )
        : el("tr", {}, el("td.soft", { colspan: 4 }, "No persona has an adapter.")),
    );
    const personas = [...new Set((now.series.get("lory_requests_total") ?? []).map((one) => one.labels.persona))].sort();
    put(
      traffic,
      personas.length
        ? personas.map((persona) => {
            const own = (labels) => labels.persona === persona;
            return el(
              "tr",
              {},
              el("td", {}, persona),
              ["lory_requests_total", "lory_prompt_tokens_total", "lory_completion_tokens_total"].map((name) => el("td.num", {}, number(sum(now, name, own)))),
            );
          })
        : el("tr", {}, el("td.soft", { colspan: 4 }, "Nobody has asked yet.")),
    );
  }

  function hide() {
    clearTimeout(timer);
    controller?.abort();
  }

  return {
    root,
    show() {
      hide();
      readings = [];
      look();
    },
    hide,
  };
}
