// The server's counters as numbers: OpenMetrics' text (the exposition format, version 1.0.0) as `name{labels} value`.

import { text } from "./api.js";

/** `Map(name -> [{ labels, value }])` of one reading, with the time in seconds at which it was taken. */
export async function read(options) {
  const series = new Map();
  for (const line of (await text("/metrics", options)).split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)(?:\{(.*?)\})? (\S+)/.exec(line);
    if (!match || line.startsWith("#")) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    if (!series.has(match[1])) series.set(match[1], []);
    series.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return { series, at: performance.now() / 1000 };
}

/** The sum of a metric over all of its labels, 0 where it is not there. */
export const sum = (reading, name, wanted = () => true) =>
  (reading.series.get(name) ?? []).filter((one) => wanted(one.labels)).reduce((total, one) => total + one.value, 0);

/** How much a counter rose between two readings. A server that was started again begins at 0. */
export const rise = (before, now, name, wanted) => {
  const [a, b] = [sum(before, name, wanted), sum(now, name, wanted)];
  return b >= a ? b - a : b;
};

/** A counter's rise per second between two readings. */
export const rate = (before, now, name, wanted) => rise(before, now, name, wanted) / Math.max(now.at - before.at, 0.001);

/**
 * The quantile `q` of what a histogram saw between two readings, in its own unit, linear within a bucket; null where it saw nothing.
 */
export function quantile(before, now, name, q) {
  const buckets = (now.series.get(`${name}_bucket`) ?? [])
    .map(({ labels }) => labels.le)
    .filter((le, at, all) => all.indexOf(le) === at)
    .map((le) => ({
      le: le === "+Inf" ? Infinity : Number(le),
      count: rise(before, now, `${name}_bucket`, (labels) => labels.le === le),
    }))
    .sort((a, b) => a.le - b.le);
  const all = buckets.at(-1)?.count ?? 0;
  if (all <= 0) return null;
  const wanted = q * all;
  let [low, below] = [0, 0];
  for (const { le, count } of buckets) {
    if (count >= wanted) {
      if (le === Infinity) return low;
      return count === below ? le : low + ((wanted - below) / (count - below)) * (le - low);
    }
    [low, below] = [le, count];
  }
  return low;
}
