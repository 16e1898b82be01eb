// The difference of two texts by words: the longest common subsequence, as the words that both have in the same order.

/** Words, each with the space behind it. */
export const words = (text) => text.match(/\S+\s*/gu) ?? [];

/**
 * Runs of words in order, each `{ text, in }` with `in` one of `both`, `left`, `right`; what differs in one place is one run of each
 * side. Takes time by the product of the lengths, so what is longer than `limit` words is cut off.
 */
export function diff(left, right, limit = 1500) {
  const a = words(left).slice(0, limit);
  const b = words(right).slice(0, limit);
  const same = (i, j) => a[i].trim() === b[j].trim();
  // length[i][j]: of the longest common subsequence of what is left from i and j on.
  const width = b.length + 1;
  const length = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      length[i * width + j] = same(i, j)
        ? length[(i + 1) * width + j + 1] + 1
        : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    }
  }
  const runs = [];
  // What differs is gathered until both agree again.
  let [cut, added] = ["", ""];
  const settle = () => {
    if (cut) runs.push({ text: cut, in: "left" });
    if (added) runs.push({ text: added, in: "right" });
    [cut, added] = ["", ""];
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && same(i, j)) {
      settle();
      const last = runs.at(-1);
      if (last?.in === "both") last.text += b[j];
      else runs.push({ text: b[j], in: "both" });
      [i, j] = [i + 1, j + 1];
    } else if (j >= b.length || (i < a.length && length[(i + 1) * width + j] >= length[i * width + j + 1])) {
      cut += a[i];
      i += 1;
    } else {
      added += b[j];
      j += 1;
    }
  }
  settle();
  return runs;
}

/** The share of words that both have, 0 to 1. */
export function alike(runs) {
  const count = (where) => runs.filter((run) => run.in === where).reduce((sum, run) => sum + words(run.text).length, 0);
  const both = 2 * count("both");
  const all = both + count("left") + count("right");
  return all === 0 ? 1 : both / all;
}
