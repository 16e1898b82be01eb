// A chart of one or a few lines over the last minutes, drawn as SVG. Its size is fixed by the style sheet, so nothing moves when
// numbers come.

import { el, put, svg } from "./dom.js";

const [WIDTH, HEIGHT] = [300, 96];
/** How many readings a chart shows. */
const LENGTH = 90;

/** A rounder number at or above `n`: 1, 2 or 5 times a power of ten. */
export function ceiling(n) {
  if (!(n > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 5, 10].map((times) => times * power).find((one) => one >= n * 0.999);
}

/**
 * A chart titled `title` of `lines`, each `{ name, color }`; `say` words a value. `push` takes a value for each line, null where there
 * is none.
 */
export function chart({ title, lines, say, top }) {
  const history = lines.map(() => []);
  const figures = lines.map(({ name, color }) => {
    const value = el("b.num", {}, "–");
    return { value, node: el("span.legend", { style: { "--tone": color } }, el("i.dot"), `${name} `, value) };
  });
  const paths = lines.map(({ color }, at) => {
    const path = svg("path", { fill: "none", "stroke-width": 2, "stroke-linejoin": "round", "vector-effect": "non-scaling-stroke", "stroke-dasharray": at === 0 ? null : at === 1 ? "6 3" : "2 3" });
    path.style.setProperty("stroke", color);
    return path;
  });
  const most = el("span.most.num", {}, "");
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title },
    svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: 1, y2: 1 }),
    svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2 }),
    svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }),
    paths,
  );
  const node = el("figure.chart", {}, el("figcaption", {}, el("h3", {}, title), el("div.legends", {}, figures.map((one) => one.node))), el("div.plot", {}, picture, most));

  function push(...values) {
    for (const [at, value] of values.entries()) {
      history[at].push(value);
      if (history[at].length > LENGTH) history[at].shift();
      put(figures[at].value, value === null ? "–" : say(value));
    }
    const limit = top ?? ceiling(Math.max(...history.flat().filter((value) => value !== null), 0));
    most.textContent = say(limit);
    for (const [at, path] of paths.entries()) {
      let [d, pen] = ["", "M"];
      for (const [i, value] of history[at].entries()) {
        if (value === null) {
          pen = "M";
          continue;
        }
        const x = WIDTH - ((history[at].length - 1 - i) / (LENGTH - 1)) * WIDTH;
        const y = HEIGHT - 1 - (Math.min(value, limit) / limit) * (HEIGHT - 2);
        d += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
        pen = "L";
      }
      path.setAttribute("d", d);
    }
    picture.setAttribute("aria-label", `${title}: ${lines.map(({ name }, at) => `${name} ${figures[at].value.textContent}`).join(", ")}`);
  }
  return { node, push };
}
