// The losses of one training job by step, as SVG: training loss as a line, validation loss as points. Must not know the job.

import { ceiling } from "./chart.js";
import { el, svg } from "./dom.js";

const [WIDTH, HEIGHT] = [600, 140];

export function lossChart() {
  const line = svg("path", { fill: "none", "stroke-width": 2, "vector-effect": "non-scaling-stroke", class: "train-loss" });
  const points = svg("path", { fill: "none", "stroke-width": 7, "stroke-linecap": "round", "vector-effect": "non-scaling-stroke", class: "validation-loss" });
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": "Loss" },
    [0, HEIGHT / 2, HEIGHT].map((y) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y })),
    line,
    points,
  );
  const axisMax = el("span.axis-max.numeric");
  const node = el(
    "figure",
    { hidden: true },
    el("div.plot.loss", {}, picture, axisMax),
    el("figcaption.small.muted", {}, el("i.legend-key.train-loss"), "training loss, ", el("i.legend-key.validation-loss"), "validation loss (held-out rows). Lower is better."),
  );

  /** Draws a job's metrics, each with `step`, `total_steps` and `train_loss` or `full_valid_loss`. */
  function draw(metrics) {
    const training = metrics.filter((one) => typeof one.train_loss === "number");
    const validation = metrics.filter((one) => typeof one.full_valid_loss === "number");
    node.hidden = !training.length;
    if (!training.length) return;
    const steps = Math.max(...metrics.map((one) => one.total_steps), 1);
    const limit = ceiling(Math.max(...training.map((one) => one.train_loss), ...validation.map((one) => one.full_valid_loss)));
    const x = (one) => ((one.step / steps) * WIDTH).toFixed(1);
    const y = (loss) => (HEIGHT - (loss / limit) * HEIGHT).toFixed(1);
    line.setAttribute("d", training.map((one, index) => `${index ? "L" : "M"}${x(one)} ${y(one.train_loss)}`).join(""));
    points.setAttribute("d", validation.map((one) => `M${x(one)} ${y(one.full_valid_loss)}h0`).join(""));
    axisMax.textContent = String(limit);
    const last = training.at(-1);
    picture.setAttribute("aria-label", `Loss: ${last.train_loss.toFixed(3)} after step ${last.step} of ${steps}`);
  }
  return { node, draw };
}
