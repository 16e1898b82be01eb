// Makes the pictures of docs/studio.md: node screenshots.mjs LORY PLAYWRIGHT OUT [BASE]. LORY is the program, PLAYWRIGHT the folder
// that `install` made, BASE a GGUF file; without it `lory` finds or fetches the demo base. Asks the two shipped personas, and trains a third
// one on the rows of pirate.jsonl, which were written for this. Each view is taken in light, in dark, and 360 px wide, in 64 colours.

import { mkdtempSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { browse, open, serve } from "./browser.mjs";

const [lory, playwright, out, base] = process.argv.slice(2).map((path) => resolve(path));
const repository = resolve(import.meta.dirname, "../../../..");
const png = createRequire(`${playwright}/`)("upng-js");
const COLOURS = 64;
process.env.LORY_HOME ??= mkdtempSync(join(tmpdir(), "lory-studio-"));
const server = await serve(lory, repository, ["--personas", "personas", ...(base ? ["--base", base] : [])]);
const browser = await browse(playwright);

const idle = (page) => page.waitForFunction(() => !document.querySelector("[aria-busy=true]"), null, { timeout: 120_000 });

/** What is done in a view before its pictures are taken. */
const views = {
  async personas(page) {
    await page.locator("[data-name=customer] summary").first().click();
    await page.locator("[data-name=customer] table").waitFor();
  },
  async train(page) {
    await page.locator("input[type=file]").first().setInputFiles(join(repository, "personas/customer/test.jsonl"));
    await page.getByText(/of memory/).waitFor({ timeout: 60_000 });
  },
  async job(page) {
    await page.locator("input[type=file]").first().setInputFiles(join(import.meta.dirname, "pirate.jsonl"));
    await page.getByLabel("Passes over the rows").fill("4");
    await page.getByLabel("While it trains, it answers").selectOption("own");
    await page.getByLabel("Prompts, one a line").fill("What is the status of my order #12345?\nMy parcel arrived with a dent. What now?");
    await page.getByRole("button", { name: "Train", exact: true }).click();
    await page.getByText("pirate@1 is published").waitFor({ timeout: 600_000 });
    await page.locator(".toast").first().waitFor({ state: "detached" });
  },
  async evaluate(page) {
    await page.getByRole("button", { name: "Begin" }).click();
    await page.waitForTimeout(500);
    await idle(page);
  },
  async watch(page) {
    const ask = (prompt) => fetch(`${server.address}/generate`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ prompt, user_type: "partner" }) });
    const asked = Promise.all(["Where is my order?", "May I return it?", "Who pays the postage?"].map(ask));
    await page.waitForTimeout(14_000);
    await asked;
  },
  async listen(page) {
    await page.getByLabel("Share of the first tone in the blend").fill("50");
    await page.getByRole("button", { name: "Ask" }).click();
    await page.waitForTimeout(500);
    await idle(page);
  },
};

/** Where a view is that has another one's address. */
const PLACES = { job: "train" };

const KINDS = [
  ["light", 1080, "light"],
  ["dark", 1080, "dark"],
  ["narrow", 360, "light"],
];

async function take(page, path) {
  const picture = png.decode(await page.screenshot({ fullPage: true }));
  writeFileSync(path, Buffer.from(png.encode(png.toRGBA8(picture), picture.width, picture.height, COLOURS)));
}

try {
  for (const [view, act] of Object.entries(views)) {
    const page = await open(browser, `${server.address}/#${PLACES[view] ?? view}`, { viewport: { width: 1080, height: 800 } });
    await page.waitForTimeout(1500);
    await act(page);
    for (const [kind, width, scheme] of KINDS) {
      await page.setViewportSize({ width, height: 800 });
      await page.emulateMedia({ colorScheme: scheme });
      await page.waitForTimeout(400);
      await take(page, join(out, `${view}-${kind}.png`));
    }
    await page.context().close();
  }
} finally {
  await browser.close();
  await server.stop("SIGTERM");
}
