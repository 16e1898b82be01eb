// Reads and evaluates the server's metrics: the text format of OpenMetrics 1.0.0, with lines `name{labels} value`. Must not know elements.

import { text } from "./api.js";

/** One reading of `/metrics`: `series` is a `Map(name -> [{ labels, value }])`, `at` the time in seconds when it was taken. */
export async function readMetrics(options) {
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

/** The sum of a metric over the labels that `matches` accepts; 0 for a missing metric. */
export const sum = (reading, name, matches = () => true) =>
  (reading.series.get(name) ?? []).filter((one) => matches(one.labels)).reduce((total, one) => total + one.value, 0);

/** The increase of a counter between two readings. After a restart the counter starts again at 0. */
export const increase = (before, now, name, matches) => {
  const [a, b] = [sum(before, name, matches), sum(now, name, matches)];
  return b >= a ? b - a : b;
};

/** A counter's increase per second between two readings. */
export const rate = (before, now, name, matches) => increase(before, now, name, matches) / Math.max(now.at - before.at, 0.001);

/**
 * The quantile `q` of the values that a histogram received between two readings, in the metric's unit, interpolated within a bucket;
 * null if it received none.
 */
export function quantile(before, now, name, q) {
  const buckets = (now.series.get(`${name}_bucket`) ?? [])
    .map(({ labels }) => labels.le)
    .filter((le, at, all) => all.indexOf(le) === at)
    .map((le) => ({
      le: le === "+Inf" ? Infinity : Number(le),
      count: increase(before, now, `${name}_bucket`, (labels) => labels.le === le),
    }))
    .sort((a, b) => a.le - b.le);
  const total = buckets.at(-1)?.count ?? 0;
  if (total <= 0) return null;
  const rank = q * total;
  let [low, below] = [0, 0];
  for (const { le, count } of buckets) {
    if (count >= rank) {
      if (le === Infinity) return low;
      return count === below ? le : low + ((rank - below) / (count - below)) * (le - low);
    }
    [low, below] = [le, count];
  }
  return low;
}
