// Makes the pictures of docs/studio.md: node screenshots.mjs LORY PLAYWRIGHT OUT [BASE]. LORY is the binary, PLAYWRIGHT the folder that
// `install` prepared, OUT the folder of the pictures, BASE a GGUF file; by default `lory` finds or downloads the demo base. It uses the two
// shipped personas and trains a third one on pirate.jsonl, whose rows were written for this. It takes each view in the light theme, in
// the dark theme and 360 px wide, each as a PNG with 64 colours. The rows have emoji: install a font for them (fonts-noto-color-emoji).

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

const waitForAnswers = (page) => page.waitForFunction(() => !document.querySelector("[aria-busy=true]"), null, { timeout: 600_000 });

/** What to do in each view before its pictures are taken. */
const views = {
  async personas(page) {
    await page.locator("[data-name=customer] summary").first().click();
    await page.locator("[data-name=customer] table").waitFor();
  },
  async train(page) {
    await page.locator("input[type=file]").first().setInputFiles(join(repository, "personas/customer/test.jsonl"));
    await page.getByText(/of memory/).waitFor({ timeout: 600_000 });
  },
  async job(page) {
    await page.locator("input[type=file]").first().setInputFiles(join(import.meta.dirname, "pirate.jsonl"));
    await page.getByLabel("Epochs").fill("4");
    await page.getByLabel("Sample prompts during training").selectOption("own");
    await page.getByLabel("Prompts, one per line").fill("What is the status of my order #12345?\nMy parcel arrived with a dent. What now?");
    await page.getByRole("button", { name: "Start training" }).click();
    await page.locator(".toast", { hasText: "Published pirate@1" }).waitFor({ timeout: 1_800_000 });
    await page.locator(".toast").first().waitFor({ state: "detached" });
  },
  async evaluate(page) {
    await page.getByRole("button", { name: "Start voting" }).click();
    await page.waitForTimeout(500);
    await waitForAnswers(page);
  },
  async monitor(page) {
    const generate = (prompt) => fetch(`${server.address}/generate`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ prompt, user_type: "partner" }) });
    const answers = Promise.all(["Where is my order?", "May I return it?", "Who pays the postage?"].map(generate));
    await page.waitForTimeout(14_000);
    await answers;
  },
  async playground(page) {
    await page.getByLabel("Share of the first persona in the blend").fill("50");
    await page.getByRole("button", { name: "Generate", exact: true }).click();
    await page.waitForTimeout(500);
    await waitForAnswers(page);
  },
};

/** The address of a picture's view, where it differs from the picture's name. */
const ADDRESSES = { job: "train" };

const VARIANTS = [
  ["light", 1080, "light"],
  ["dark", 1080, "dark"],
  ["narrow", 360, "light"],
];

async function savePicture(page, path) {
  const picture = png.decode(await page.screenshot({ fullPage: true }));
  writeFileSync(path, Buffer.from(png.encode(png.toRGBA8(picture), picture.width, picture.height, COLOURS)));
}

try {
  for (const [view, prepare] of Object.entries(views)) {
    const page = await open(browser, `${server.address}/#${ADDRESSES[view] ?? view}`, { viewport: { width: 1080, height: 800 } });
    await page.waitForTimeout(1500);
    await prepare(page);
    for (const [variant, width, scheme] of VARIANTS) {
      await page.setViewportSize({ width, height: 800 });
      await page.emulateMedia({ colorScheme: scheme });
      await page.waitForTimeout(400);
      await savePicture(page, join(out, `${view}-${variant}.png`));
    }
    await page.context().close();
  }
} finally {
  await browser.close();
  await server.stop("SIGTERM");
}
