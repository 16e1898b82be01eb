// Starts a server and a browser for flows.mjs and screenshots.mjs.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

/** Starts `lory serve` with `args` in `folder` and resolves once it serves. `stop` ends it. */
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

/** Launches Debian's chromium with the playwright-core in `folder`. */
export async function browse(folder) {
  const { chromium } = createRequire(`${folder}/`)("playwright-core");
  const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
  return chromium.launch({ executablePath: "/usr/bin/chromium", headless: true, args });
}

/** The accessibility rules that the page breaks and the elements that break them, according to the axe-core in `folder`. */
export async function accessibilityViolations(page, folder) {
  const { source } = createRequire(`${folder}/`)("axe-core");
  await page.evaluate(source);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.map((one) => `${one.impact} ${one.id}: ${one.nodes.map((node) => node.html.slice(0, 120)).join(" ")}`);
}

/**
 * Opens a page that records its console errors in `page.errors`, and the layout shifts that user input did not cause in `window.shifts`.
 */
export async function open(browser, address, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.errors = [];
  page.on("console", (message) => {
    if (message.type() === "error") page.errors.push(message.text());
  });
  page.on("pageerror", (error) => page.errors.push(`${error.message}\n${error.stack}`));
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
