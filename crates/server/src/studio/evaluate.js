// Evaluate: a blind vote, evaluations on demand, and their results. Each part is its own module.

import { blindVote } from "./blind-vote.js";
import { el } from "./dom.js";
import { evaluationResults } from "./evaluation-results.js";
import { evaluationRun } from "./evaluation-run.js";

export function evaluate(studio) {
  const vote = blindVote(studio);
  const results = evaluationResults();
  const run = evaluationRun(studio, (result) => results.show(result));
  const root = el("section.view", { "aria-label": "Evaluate" }, el("h1", {}, "Evaluate personas"), vote.root, run.root, results.root);
  return {
    root,
    show() {
      vote.show();
      run.show();
      results.show();
    },
  };
}
