// The difference of two texts by words, from their longest common subsequence. Must not know elements.

/** Splits a text into words, each with the white space after it. */
export const words = (text) => text.match(/\S+\s*/gu) ?? [];

/**
 * The runs of words in order, each `{ text, in }` with `in` one of `both`, `left` or `right`. Takes time in proportion to the product
 * of the lengths, so each text is cut off after `limit` words.
 */
export function diff(left, right, limit = 1500) {
  const a = words(left).slice(0, limit);
  const b = words(right).slice(0, limit);
  const same = (i, j) => a[i].trim() === b[j].trim();
  // length[i][j] is the length of the longest common subsequence of a[i..] and b[j..].
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
  // Collects the words that differ, until both texts agree again: one run for each side.
  let [removed, added] = ["", ""];
  const flush = () => {
    if (removed) runs.push({ text: removed, in: "left" });
    if (added) runs.push({ text: added, in: "right" });
    [removed, added] = ["", ""];
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && same(i, j)) {
      flush();
      const last = runs.at(-1);
      if (last?.in === "both") last.text += b[j];
      else runs.push({ text: b[j], in: "both" });
      [i, j] = [i + 1, j + 1];
    } else if (j >= b.length || (i < a.length && length[(i + 1) * width + j] >= length[i * width + j + 1])) {
      removed += a[i];
      i += 1;
    } else {
      added += b[j];
      j += 1;
    }
  }
  flush();
  return runs;
}

/** The share of words that both texts have, 0 to 1. */
export function similarity(runs) {
  const count = (where) => runs.filter((run) => run.in === where).reduce((sum, run) => sum + words(run.text).length, 0);
  const both = 2 * count("both");
  const all = both + count("left") + count("right");
  return all === 0 ? 1 : both / all;
}
