// Monitor: the server's load, latencies, caches and traffic, from its metrics. It polls only while it is shown.

import { get } from "./api.js";
import { chart } from "./chart.js";
import { el, errorState, scrollable, setChildren } from "./dom.js";
import { bytes, milliseconds, number, percent, shortHash } from "./format.js";
import { quantile, rate, readMetrics, sum } from "./metrics.js";

/** How often the metrics are read, in milliseconds. */
const POLL = 2000;
/** Latencies cover this many readings, because two seconds with few requests may have no values. */
const WINDOW = 15;

const seconds = (value) => milliseconds(value * 1000);

const table = (title, columns, body) =>
  el("section.panel", {}, el("h2", {}, title), scrollable(title, el("table", {}, el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)))), body)));

export function monitor() {
  const line = (name, color) => ({ name, color: `var(--palette-${color})` });
  const quantiles = [line("p50", 1), line("p95", 0)];
  const charts = {
    requests: chart({ title: "Requests", lines: [line("running", 1), line("waiting", 0)], format: number }),
    tokens: chart({ title: "Tokens per second", lines: [line("generated", 2), line("prompt", 3)], format: number }),
    firstToken: chart({ title: "Time to first token", lines: quantiles, format: seconds }),
    interToken: chart({ title: "Inter-token latency", lines: quantiles, format: seconds }),
    kvCache: chart({ title: "KV cache", lines: [line("in use", 4), line("cached", 5)], format: percent, max: 1 }),
    adapters: chart({ title: "Adapter memory", lines: [line("in use", 3)], format: percent, max: 1 }),
  };
  const tiles = {};
  const tile = (key, label) => {
    tiles[key] = el("dd.numeric", {}, "–");
    return el("div.tile", {}, el("dt", {}, label), tiles[key]);
  };
  const adapters = el("tbody");
  const traffic = el("tbody");
  const problem = el("div");
  const content = el(
    "div.stack",
    {},
    el(
      "dl.tiles",
      {},
      tile("completed", "Completed requests"),
      tile("failed", "Rejected or failed"),
      tile("generated", "Generated tokens"),
      tile("cached", "Prompt tokens from cache"),
      tile("preempted", "Preemptions"),
    ),
    el("h2.visually-hidden", {}, "Over time"),
    el("div.charts", {}, Object.values(charts).map((one) => one.node)),
    el(
      "div.two-columns",
      {},
      table("Adapters", ["Adapter", "Personas", "Memory", "Active requests"], adapters),
      table("Traffic by persona", ["Persona", "Requests", "Prompt tokens", "Generated tokens"], traffic),
    ),
  );
  const root = el(
    "section.view",
    { "aria-label": "Monitor" },
    el("h1", {}, "Server activity"),
    el("p.intro", {}, "Read from ", el("a", { href: "/metrics" }, "/metrics"), " every two seconds while this view is open. Latencies cover the last 30 seconds."),
    problem,
    content,
  );

  let timer = 0;
  let readings = [];
  let controller = null;

  async function poll() {
    controller = new AbortController();
    const options = { signal: controller.signal };
    try {
      const [now, pool] = await Promise.all([readMetrics(options), get("/v1/lora_adapters", options)]);
      setChildren(problem);
      content.hidden = false;
      drawLoad(now);
      drawAdapters(pool.data);
      drawTraffic(now);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 403) {
        setChildren(problem, errorState(Object.assign(new Error("Use a key with admin rights."), { title: "Metrics require an admin key" })));
        content.hidden = true;
        return;
      }
      // While the server is unreachable the banner says so, and the charts stay.
      readings = [];
    }
    timer = setTimeout(poll, POLL);
  }

  function drawLoad(now) {
    const before = readings.at(-1);
    const windowStart = readings.at(-WINDOW) ?? readings[0];
    readings.push(now);
    if (readings.length > WINDOW) readings.shift();
    const completed = (labels) => ["stop", "length"].includes(labels.outcome);
    const failed = (labels) => !completed(labels) && labels.outcome !== "cancelled";
    setChildren(tiles.completed, number(sum(now, "lory_requests_total", completed)));
    setChildren(tiles.failed, number(sum(now, "lory_requests_total", failed)));
    setChildren(tiles.generated, number(sum(now, "lory_sampled_tokens_total")));
    setChildren(tiles.preempted, number(sum(now, "lory_preemptions_total")));
    const hits = sum(now, "lory_prefix_cache_hit_tokens_total");
    const prompts = sum(now, "lory_prompt_tokens_total");
    setChildren(tiles.cached, prompts ? percent(hits / prompts) : "–");
    charts.requests.push(sum(now, "lory_requests_running"), sum(now, "lory_requests_waiting"));
    const blocks = Math.max(sum(now, "lory_kv_blocks"), 1);
    charts.kvCache.push(sum(now, "lory_kv_blocks_used") / blocks, sum(now, "lory_kv_blocks_cached") / blocks);
    charts.adapters.push(sum(now, "lory_adapter_memory_bytes") / Math.max(sum(now, "lory_adapter_memory_limit_bytes"), 1));
    if (!before) return;
    charts.tokens.push(rate(before, now, "lory_sampled_tokens_total"), rate(before, now, "lory_prefill_rows_total"));
    for (const [key, metric] of [["firstToken", "lory_time_to_first_token_seconds"], ["interToken", "lory_inter_token_time_seconds"]]) {
      charts[key].push(quantile(windowStart, now, metric, 0.5), quantile(windowStart, now, metric, 0.95));
    }
  }

  const emptyRow = (text) => el("tr", {}, el("td.muted", { colspan: 4 }, text));

  function drawAdapters(pool) {
    const row = ({ sha256, names, loading, resident, bytes: size, leases }) =>
      el(
        "tr",
        {},
        el("td.mono", { title: sha256 }, shortHash(sha256)),
        el("td", {}, names.map(({ name, version }) => `${name}@${version}`).join(", ") || "removed"),
        el("td.numeric", {}, loading ? "loading" : resident ? bytes(size) : el("span.muted", {}, "on disk")),
        el("td.numeric", {}, leases ? number(leases) : el("span.muted", {}, "none")),
      );
    setChildren(adapters, pool.length ? pool.map(row) : emptyRow("No persona has an adapter."));
  }

  function drawTraffic(now) {
    const personas = [...new Set((now.series.get("lory_requests_total") ?? []).map((one) => one.labels.persona))].sort();
    const row = (persona) =>
      el(
        "tr",
        {},
        el("td", {}, persona),
        ["lory_requests_total", "lory_prompt_tokens_total", "lory_completion_tokens_total"].map((metric) => el("td.numeric", {}, number(sum(now, metric, (labels) => labels.persona === persona)))),
      );
    setChildren(traffic, personas.length ? personas.map(row) : emptyRow("No requests yet."));
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
      poll();
    },
    hide,
  };
}
