// A server and a browser, for flows.mjs and screenshots.mjs.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

/** Starts `lory serve` with these arguments in `folder`; resolves once it serves. */
export async function serve(lory, folder, args, port = 0) {
  const child = spawn(lory, ["serve", "--port", String(port), ...args], { cwd: folder, stdio: ["ignore", "pipe", "inherit"] });
  let address = null;
  for await (const line of createInterface({ input: child.stdout })) {
    address = /Serving (\S+)/.exec(line)?.[1] ?? address;
    if (line.includes("curl")) break;
  }
  if (!address) throw new Error("the server did not start");
  child.stdout.resume();
  const stop = async (signal = "SIGKILL") => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill(signal);
      await once(child, "exit");
    }
  };
  return { address, port: Number(new URL(address).port), stop };
}

/** Debian's chromium, driven by the playwright-core in `folder`. */
export async function browse(folder) {
  const { chromium } = createRequire(`${folder}/`)("playwright-core");
  const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
  return chromium.launch({ executablePath: "/usr/bin/chromium", headless: true, args: quiet });
}

/** What axe-core, in the same folder, finds wrong with the page: the rule, and the elements that break it. */
export async function barriers(page, folder) {
  const { source } = createRequire(`${folder}/`)("axe-core");
  await page.evaluate(source);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.map((one) => `${one.impact} ${one.id}: ${one.nodes.map((node) => node.html.slice(0, 120)).join(" ")}`);
}

/** A page that remembers what was wrong: errors of its console, and shifts of its layout that nobody's input caused. */
export async function open(browser, address, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.wrong = [];
  page.on("console", (message) => {
    if (message.type() === "error") page.wrong.push(message.text());
  });
  page.on("pageerror", (error) => page.wrong.push(`${error.message}\n${error.stack}`));
  await page.addInitScript(() => {
    window.shifts = [];
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) {
        if (!entry.hadRecentInput) window.shifts.push({ value: entry.value, nodes: entry.sources.map(({ node }) => node?.className || node?.nodeName) });
      }
    }).observe({ type: "layout-shift", buffered: true });
  });
  await page.goto(address);
  return page;
}
