// Formats numbers, sizes, durations and times for people. Must not know elements.

const integer = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const decimal = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** 12,345; 9.4 for small fractions. */
export const number = (n) => (Math.abs(n) >= 100 || Number.isInteger(n) ? integer : decimal).format(n);

/** A count with its noun: 1 vote, 2 votes. */
export const count = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;

/** 1.2 MiB. */
export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${number(n)} ${units[unit]}`;
}

/** 340 ms, 2.1 s. */
export function milliseconds(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return "–";
  return ms < 1000 ? `${integer.format(ms)} ms` : duration(ms / 1000);
}

/** 2.1 s, 4 min 10 s, 3 h 5 min. */
export function duration(seconds) {
  if (seconds < 60) return `${decimal.format(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${integer.format(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${integer.format((seconds % 3600) / 60)} min`;
}

/** An estimated duration, rounded: 50 s, 4 min, 3 h 10 min. */
export function approximateDuration(seconds) {
  if (seconds < 90) return `${5 * Math.max(Math.round(seconds / 5), 1)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${5 * Math.floor((minutes % 60) / 5)} min`;
}

/** A Unix time in seconds: relative within a day, a date before that. */
export function relativeTime(seconds) {
  const past = Date.now() / 1000 - seconds;
  if (past < 60) return "just now";
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 86400) return `${Math.floor(past / 3600)} h ago`;
  return new Date(seconds * 1000).toLocaleDateString("en", { day: "numeric", month: "short", year: "numeric" });
}

/** The first 12 digits of a hash, enough to tell it from others. */
export const shortHash = (sha256) => sha256.slice(0, 12);

/** A fraction as a percentage: 62%. */
export const percent = (fraction) => `${decimal.format(fraction * 100)}%`;

/** A served model as clients name it: `customer@3`, or the bare name where there is no version. */
export const versionedName = ({ name, version }) => (version === null ? name : `${name}@${version}`);
