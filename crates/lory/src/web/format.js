// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** 12,345; 9.4 where there are few. */
export const number = (n) => (Math.abs(n) >= 100 || Number.isInteger(n) ? whole : one).format(n);

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
  return ms < 1000 ? `${whole.format(ms)} ms` : duration(ms / 1000);
}

/** 2.1 s, 4 min, 3 h. */
export function duration(seconds) {
  if (seconds < 60) return `${one.format(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${whole.format(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${whole.format((seconds % 3600) / 60)} min`;
}

/** A time that is estimated: 50 s, 4 min, 3 h 10 min. */
export function about(seconds) {
  if (seconds < 90) return `${5 * Math.max(Math.round(seconds / 5), 1)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${5 * Math.floor((minutes % 60) / 5)} min`;
}

/** A Unix time, near ones in words. */
export function when(seconds) {
  const past = Date.now() / 1000 - seconds;
  if (past < 60) return "just now";
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 86400) return `${Math.floor(past / 3600)} h ago`;
  return new Date(seconds * 1000).toLocaleDateString("en", { day: "numeric", month: "short", year: "numeric" });
}

/** Enough of a hash to tell it from others. */
export const short = (sha256) => sha256.slice(0, 12);

/** 62%. */
export const percent = (share) => `${one.format(share * 100)}%`;
