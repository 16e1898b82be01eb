// A line chart of the last minutes as SVG. The style sheet fixes its size, so nothing moves when values arrive. Must not know where the
// values come from.

import { el, setChildren, svg } from "./dom.js";

const [WIDTH, HEIGHT] = [300, 96];
/** The number of readings that a chart shows. */
const LENGTH = 90;

/** The next of 1, 2 or 5 times a power of ten at or above `n`. */
export function ceiling(n) {
  if (!(n > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 5, 10].map((times) => times * power).find((one) => one >= n * 0.999);
}

/**
 * A chart of `lines`, each `{ name, color }`; `format` turns a value into text, `max` fixes the top of the axis. `push` takes one value
 * for each line, or null where there is none.
 */
export function chart({ title, lines, format, max }) {
  const history = lines.map(() => []);
  const legend = lines.map(({ name, color }) => {
    const value = el("b.numeric", {}, "–");
    return { value, node: el("span.legend", { style: { "--swatch": color } }, el("i.dot"), `${name} `, value) };
  });
  const paths = lines.map(({ color }, index) => {
    const path = svg("path", { fill: "none", "stroke-width": 2, "stroke-linejoin": "round", "vector-effect": "non-scaling-stroke", "stroke-dasharray": index === 0 ? null : index === 1 ? "6 3" : "2 3" });
    path.style.setProperty("stroke", color);
    return path;
  });
  const axisMax = el("span.axis-max.numeric", {}, "");
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title },
    svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: 1, y2: 1 }),
    svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2 }),
    svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }),
    paths,
  );
  const node = el("figure.chart", {}, el("figcaption", {}, el("h3", {}, title), el("div.legends", {}, legend.map((one) => one.node))), el("div.plot", {}, picture, axisMax));

  function push(...values) {
    for (const [index, value] of values.entries()) {
      history[index].push(value);
      if (history[index].length > LENGTH) history[index].shift();
      setChildren(legend[index].value, value === null ? "–" : format(value));
    }
    const limit = max ?? ceiling(Math.max(...history.flat().filter((value) => value !== null), 0));
    axisMax.textContent = format(limit);
    for (const [index, path] of paths.entries()) {
      // A gap in the values starts a new stroke.
      let [d, command] = ["", "M"];
      for (const [i, value] of history[index].entries()) {
        if (value === null) {
          command = "M";
          continue;
        }
        const x = WIDTH - ((history[index].length - 1 - i) / (LENGTH - 1)) * WIDTH;
        const y = HEIGHT - 1 - (Math.min(value, limit) / limit) * (HEIGHT - 2);
        d += `${command}${x.toFixed(1)} ${y.toFixed(1)}`;
        command = "L";
      }
      path.setAttribute("d", d);
    }
    picture.setAttribute("aria-label", `${title}: ${lines.map(({ name }, index) => `${name} ${legend[index].value.textContent}`).join(", ")}`);
  }
  return { node, push };
}
