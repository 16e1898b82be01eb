// Tests the studio in a real browser: node flows.mjs LORY HOME PLAYWRIGHT. LORY is the binary, HOME the folder that main.rs prepared,
// PLAYWRIGHT the folder that `install` prepared.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import { accessibilityViolations, browse, open, serve } from "./browser.mjs";

const [lory, home, playwright] = process.argv.slice(2);
const SERVE = ["--base", "tiny.gguf", "--personas", "personas"];
const WAIT = { timeout: 120_000 };

let server = await serve(lory, home, SERVE);
const browser = await browse(playwright);

/** Asserts that the page logged no errors other than those that `expected` matches, and clears its list. */
function assertNoErrors(page, expected = /$^/) {
  const errors = page.errors.splice(0).filter((text) => !expected.test(text));
  assert.deepEqual(errors, []);
}

/** Waits for a toast with this text. */
const waitForToast = (page, text, timeout = WAIT.timeout) => page.locator(".toast", { hasText: text }).first().waitFor({ timeout });

const flows = {
  async "several models answer one prompt, and nothing moves while they stream"(page) {
    await page.getByRole("heading", { name: "Compare tones side by side" }).waitFor(WAIT);
    await page.getByRole("button", { name: "Generate", exact: true }).waitFor(WAIT);
    assert.equal(await page.locator(".answer").count(), 3);
    await page.evaluate(() => document.fonts.ready);
    await page.getByLabel("Prompt").fill("Where is my order?");
    await page.keyboard.press("Control+Enter");
    await page.waitForTimeout(600);
    await page.evaluate(() => (window.shifts = []));
    // Generates again. A shift within half a second of user input would not count, so there is none.
    await page.evaluate(() => document.querySelector(".composer").requestSubmit());
    await page.waitForFunction(() => document.querySelectorAll(".stats b").length >= 12 && !document.querySelector("[aria-busy=true]"), null, WAIT);
    assert.deepEqual(await page.evaluate(() => window.shifts), []);
    for (const text of await page.locator(".answer .text").allTextContents()) assert.ok(text.length > 0);
    assert.match(await page.locator(".answer .stats").first().textContent(), /first token .+tokens\/s .+tokens \d+/);
    // The code for the same request.
    const curl = await page.locator("pre.code").textContent();
    assert.ok(curl.includes(`${server.address}/generate`) && curl.includes('"prompt":"Where is my order?"'), curl);
    await page.getByRole("button", { name: "Python" }).click();
    assert.match(await page.locator("pre.code").textContent(), /urllib\.request/);
    assert.match(await page.locator(".differences").textContent(), /of the words are the same/);
    assertNoErrors(page);
  },

  async "the pure functions compute the expected values"(page) {
    const actual = await page.evaluate(async () => {
      const { diff, similarity } = await import("/studio/diff.js");
      const { quantile, rate } = await import("/studio/metrics.js");
      const { ceiling } = await import("/studio/chart.js");
      const { curl } = await import("/studio/snippets.js");
      const { bytes, duration } = await import("/studio/format.js");
      const { zip } = await import("/studio/zip.js");
      const series = (counts, total) => ({
        at: total,
        series: new Map([
          ["t_bucket", Object.entries(counts).map(([le, value]) => ({ labels: { le }, value }))],
          ["n", [{ labels: {}, value: total * 3 }]],
        ]),
      });
      const [before, now] = [series({ 1: 0, 2: 0, "+Inf": 0 }, 0), series({ 1: 5, 2: 10, "+Inf": 10 }, 10)];
      const archive = new Uint8Array(await (await zip([{ name: "a", file: new Blob(["abc"]) }])).arrayBuffer());
      return {
        diff: diff("the red car stops", "the blue car stops now"),
        similarity: similarity(diff("a b c d", "a b c e")),
        empty: similarity(diff("", "")),
        median: quantile(before, now, "t", 0.5),
        high: quantile(before, now, "t", 0.9),
        none: quantile(now, now, "t", 0.5),
        rate: rate(before, now, "n"),
        restarted: rate(now, { ...before, at: 20 }, "n"),
        ceiling: [0, 0.3, 1, 7, 120].map(ceiling),
        curl: curl({ prompt: "it's" }, false).split("\n").at(-1),
        formatted: [bytes(9_740_000), duration(75)],
        // CRC-32 of "abc" is 0x352441c2.
        crc: [...archive.slice(14, 18)],
      };
    });
    assert.deepEqual(actual, {
      diff: [
        { text: "the ", in: "both" },
        { text: "red ", in: "left" },
        { text: "blue ", in: "right" },
        { text: "car stops ", in: "both" },
        { text: "now", in: "right" },
      ],
      similarity: 0.75,
      empty: 1,
      median: 1,
      high: 1.8,
      none: null,
      rate: 3,
      restarted: 0,
      ceiling: [1, 0.5, 1, 10, 200],
      curl: `  -d '{"prompt":"it'\\''s"}'`,
      formatted: ["9.3 MiB", "1 min 15 s"],
      crc: [0xc2, 0x41, 0x24, 0x35],
    });
  },

  async "the same seed gives the same answer, and the slider generates a blend"(page) {
    const text = page.locator(".answer .text").first();
    const before = await text.textContent();
    await page.getByRole("button", { name: "Regenerate" }).first().click();
    await page.waitForFunction(() => !document.querySelector("[aria-busy=true]"), null, WAIT);
    assert.equal(await text.textContent(), before);
    await page.getByLabel("Share of the first persona in the blend").fill("70");
    const blend = page.locator(".answer", { hasText: "formal*0.7+warm*0.3" });
    await blend.locator(".stats b").first().waitFor(WAIT);
    // A variable of a system prompt is sent to the personas that have it.
    await page.getByText("Settings", { exact: true }).click();
    await page.getByLabel("{{shop}}").fill("Nile Shoes");
    await page.getByLabel("Show code for").selectOption("warm");
    assert.match(await page.locator("pre.code").textContent(), /"variables": \{"shop": "Nile Shoes"\}/);
    assertNoErrors(page);
  },

  async "a persona is published, gets a canary, is rolled back and removed"(page) {
    await page.getByRole("link", { name: "Personas" }).click();
    const warm = page.locator("[data-name=warm]");
    await warm.getByText("not published").waitFor(WAIT);
    await warm.locator("summary").first().click();
    await warm.getByRole("button", { name: "Publish" }).click();
    await waitForToast(page, "Published warm");
    await warm.getByText("current", { exact: true }).waitFor(WAIT);

    // Another adapter, as a new version that is not current.
    await page.locator("input[type=file]").first().setInputFiles(join(home, "third"));
    await page.getByText("runs on this base model").waitFor(WAIT);
    assert.match(await page.locator(".facts").first().textContent(), /Rank, alpha4/);
    await page.getByLabel("Publish as").fill("warm");
    await page.getByLabel("Make it the current version").uncheck();
    await page.getByRole("button", { name: "Publish", exact: true }).click();
    await waitForToast(page, "Published warm@2");

    await warm.getByRole("button", { name: "Start a canary …" }).click();
    await page.getByRole("button", { name: "Start canary" }).click();
    await warm.getByText("canary: 10% to version 2").waitFor(WAIT);
    await warm.getByRole("button", { name: "End canary" }).click();
    await waitForToast(page, "Canary ended");
    await warm.getByRole("button", { name: "Make current" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Make current" }).click();
    await waitForToast(page, "warm now uses version 2");
    await warm.getByRole("button", { name: "Make current" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Make current" }).click();
    await waitForToast(page, "warm now uses version 1");

    await warm.getByRole("button", { name: "Remove …" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByRole("textbox").fill("warm@1");
    await dialog.getByRole("button", { name: "Remove" }).click();
    assert.ok(await dialog.isVisible(), "another name than the version's must remove nothing");
    await dialog.getByRole("textbox").fill("warm@2");
    await dialog.getByRole("button", { name: "Remove" }).click();
    await waitForToast(page, "Removed warm@2");
    assertNoErrors(page);
  },

  async "an upload that is not an adapter is rejected with a reason"(page) {
    const nonsense = join(home, "nonsense.zip");
    writeFileSync(nonsense, "no archive");
    await page.locator("input[type=file]").nth(1).setInputFiles(nonsense);
    await page.getByText("not a readable zip archive").waitFor(WAIT);
    assertNoErrors(page, /status of 400/);
  },

  async "a broken row is rejected with its line number"(page) {
    await page.getByRole("link", { name: "Train" }).click();
    const file = page.locator(".view[aria-label=Train] input[type=file]");
    await file.setInputFiles(join(home, "broken.jsonl"));
    await page.getByText(/broken\.jsonl:2/).waitFor(WAIT);
    assertNoErrors(page, /status of 400/);
  },

  async "a dataset is trained into a persona that answers"(page) {
    const file = page.locator(".view[aria-label=Train] input[type=file]");
    await file.setInputFiles(join(home, "rows.jsonl"));
    await page.getByText("12 rows,").waitFor(WAIT);
    assert.match(await page.locator(".rendered mark").first().textContent(), /Answer \d+\./);
    assert.equal(await page.getByLabel("Persona name").inputValue(), "rows");
    await page.getByLabel("Persona name").fill("cheerful");
    await page.getByLabel("Epochs").fill("2");
    await page.getByText(/steps, .*tokens, .*of memory/).waitFor(WAIT);
    await page.getByRole("button", { name: "Start training" }).click();
    await waitForToast(page, "Training job for cheerful created");
    await waitForToast(page, "Published cheerful@1", 300_000);
    assert.equal(await page.locator(".plot.loss:visible").count(), 1);
    await page.getByText("Answers to held-out questions").click();
    await page.getByRole("heading", { name: "Answer in the data" }).first().waitFor(WAIT);
    await page.locator(".job").getByRole("link", { name: "Try it" }).click();
    // The browser opens the view after the click has returned. The model is selected by the name that clients use, once.
    await page.locator(".chip[aria-pressed]", { hasText: "cheerful" }).first().waitFor(WAIT);
    assert.deepEqual(await page.locator(".chip[aria-pressed]", { hasText: "cheerful" }).allTextContents(), ["cheerful"]);
    assert.equal(await page.getByLabel("Show code for").inputValue(), "cheerful");
    await page.getByRole("button", { name: "Generate", exact: true }).click();
    await page.locator(".answer", { hasText: "cheerful@1" }).locator(".stats b").first().waitFor(WAIT);
    await page.waitForFunction(() => !document.querySelector("[aria-busy=true]"), null, WAIT);
    assertNoErrors(page);
  },

  async "an adapter whose eval gate failed is compared with the current version, published and rolled back"(page) {
    await page.getByRole("link", { name: "Train" }).click();
    await page.locator(".view[aria-label=Train] input[type=file]").setInputFiles(join(home, "rows.jsonl"));
    await page.getByText("12 rows,").waitFor(WAIT);
    await page.getByLabel("Persona name").fill("cheerful");
    await page.getByText("Adds a new version of cheerful.").waitFor(WAIT);
    await page.getByLabel("Epochs").fill("1");
    await page.getByLabel(/Publish when training is done/).uncheck();
    await page.getByText("System prompt and eval gate").click();
    // A tiny random base never answers this, so the gate fails.
    await page.getByLabel(/^Answers must match/).fill("^never said$");
    await page.getByRole("button", { name: "Start training" }).click();
    const job = page.locator(".job").first();
    await job.getByText("The eval gate failed, so the adapter was not published.").waitFor({ timeout: 300_000 });
    await job.getByRole("button", { name: "Compare with cheerful@1" }).click();
    await waitForToast(page, "Published cheerful@2; the current version stays");
    await job.getByText(/of the words are the same\. Struck out: only cheerful@1\. Highlighted: only cheerful@2/).waitFor(WAIT);
    await job.getByRole("button", { name: "Make current" }).click();
    await job.getByText("cheerful@2 is the current version of cheerful.").waitFor(WAIT);
    await job.getByRole("button", { name: "Roll back to cheerful@1" }).click();
    await job.getByText("cheerful@2 is published but not current: cheerful uses version 1.").waitFor(WAIT);
    assertNoErrors(page);
  },

  async "a training job shows sampled answers, and the user can step back through them"(page) {
    await page.locator(".view[aria-label=Train] input[type=file]").setInputFiles(join(home, "many.jsonl"));
    await page.getByText("60 rows,").waitFor(WAIT);
    await page.getByLabel("Persona name").fill("patient");
    await page.getByLabel("Epochs").fill("100");
    await page.getByLabel("Sample prompts during training").selectOption("own");
    const own = page.getByLabel("Prompts, one per line");
    await own.fill("a\nb\nc\nd\ne");
    assert.match(await own.evaluate((node) => node.validationMessage), /5 prompts; at most 4/);
    await own.fill("Where is it?\n\nWho are you?");
    assert.equal(await own.evaluate((node) => node.validationMessage), "");
    await page.getByText("More settings").click();
    await page.getByLabel("Batch size").fill("1");
    await page.getByRole("button", { name: "Start training" }).click();
    await waitForToast(page, "Training job for patient created");
    const job = page.locator(".job").first();
    const slider = job.getByLabel("Training step of the answers");
    // The controls appear with the second step after the first one.
    await job.locator(".step-controls:visible").waitFor({ timeout: 300_000 });
    assert.deepEqual(await job.locator(".samples .prompt-text").allTextContents(), ["Where is it?", "Who are you?"]);
    assert.equal(await job.getByRole("heading", { name: "Before training" }).count(), 2);
    assert.equal(await job.locator(".step-answers > [data-shown]").count(), 2);
    assert.match(await slider.getAttribute("aria-valuetext"), /^step \d+ \(newest\)$/);
    assert.deepEqual(await accessibilityViolations(page, playwright), []);
    // After going back, new answers do not move the slider.
    await job.getByLabel("Earlier step").click();
    const earlier = await slider.inputValue();
    const most = await slider.getAttribute("max");
    await page.waitForFunction((most) => Number(document.querySelector(".step-controls input").max) > Number(most), most, { timeout: 120_000 });
    assert.equal(await slider.inputValue(), earlier);
    assert.doesNotMatch(await slider.getAttribute("aria-valuetext"), /newest/);
    // At the newest step, the slider follows new answers.
    await slider.fill(await slider.getAttribute("max"));
    await page.waitForFunction((most) => Number(document.querySelector(".step-controls input").value) > Number(most), await slider.getAttribute("max"), { timeout: 120_000 });
    assert.match(await job.locator(".tag").first().textContent(), /^(running|sampling)$/);
    await job.getByRole("button", { name: "Cancel …" }).click();
    await page.getByRole("button", { name: "Cancel training" }).click();
    await waitForToast(page, "patient: cancelled");
    assertNoErrors(page);
  },

  async "a blind vote is stored"(page) {
    await page.getByRole("link", { name: "Evaluate" }).click();
    await page.getByLabel("First persona").fill("warm");
    await page.getByLabel("Second persona").fill("formal");
    await page.getByRole("button", { name: "Start voting" }).click();
    const left = page.getByRole("button", { name: "Left is better" });
    await page.waitForFunction(() => [...document.querySelectorAll("button")].some((button) => button.textContent === "Left is better" && !button.disabled), null, WAIT);
    assert.doesNotMatch(await page.locator(".answers.two").textContent(), /warm@1|formal@1/);
    await left.click();
    await page.getByText(/Left: (warm|formal)@1/).waitFor(WAIT);
    await page.getByText("1 vote, 0 ties").waitFor(WAIT);
    assertNoErrors(page);
  },

  async "a stored evaluation is shown as heat maps"(page) {
    await page.getByRole("heading", { name: "Loss (nats per token)" }).waitFor(WAIT);
    assert.equal(await page.locator(".heat-map").count(), 3);
    assert.ok((await page.locator(".heat-map .cell").count()) >= 14);
    await page.getByText("Answers side by side").click();
    await page.getByText("In transit.").waitFor(WAIT);
    assertNoErrors(page);
  },

  async "an evaluation runs on demand, and another one is cancelled"(page) {
    const before = await page.getByLabel("Evaluation", { exact: true }).inputValue();
    for (const name of ["cheerful", "warm", "formal"]) assert.equal(await page.locator(".chip", { hasText: name }).getAttribute("aria-pressed"), "true");
    await page.getByRole("button", { name: "cheerful" }).click();
    await page.getByLabel("Add a version").selectOption("cheerful@1");
    await page.locator(".view[aria-label=Evaluate] input[type=file]").setInputFiles(join(home, "rows.jsonl"));
    await page.locator("select[name=file]").locator("option:checked", { hasText: "rows.jsonl (12 rows)" }).waitFor({ state: "attached", ...WAIT });
    await page.getByLabel("Max rows per persona").fill("3");
    await page.getByRole("button", { name: "Run evaluation" }).click();
    const card = page.locator(".evaluation").first();
    await card.getByText(/(warm@1, formal@1|formal@1, warm@1), cheerful@1/).waitFor(WAIT);
    assert.deepEqual(await accessibilityViolations(page, playwright), []);
    await waitForToast(page, /^Evaluated .*cheerful@1/, 300_000);
    await page.waitForFunction((before) => document.querySelector("[aria-label='Evaluation']").value !== before, before, WAIT);
    const losses = page.locator(".heat-map", { has: page.getByRole("heading", { name: "Loss (nats per token)" }) });
    await losses.getByRole("rowheader", { name: "cheerful" }).waitFor(WAIT);
    assert.equal(await losses.getByRole("rowheader").count(), 3);
    assert.equal(await page.locator(".evaluation").count(), 0);
    // With many rows it runs long enough to be followed after a reload, and cancelled.
    await page.locator(".view[aria-label=Evaluate] input[type=file]").setInputFiles(join(home, "long.jsonl"));
    await page.locator("select[name=file]").locator("option:checked", { hasText: "long.jsonl" }).waitFor({ state: "attached", ...WAIT });
    await page.getByLabel("Max rows per persona").fill("500");
    await page.getByRole("button", { name: "Run evaluation" }).click();
    await card.getByText(/\d of \d/).waitFor(WAIT);
    await page.reload();
    await card.getByRole("button", { name: "Cancel" }).click();
    await card.getByText("cancelled").waitFor(WAIT);
    await card.getByRole("button", { name: "Dismiss" }).click();
    assert.equal(await page.locator(".evaluation").count(), 0);
    for (const name of ["cheerful", "warm", "formal"]) await page.getByRole("button", { name }).click();
    await page.getByRole("button", { name: "Run evaluation" }).click();
    await page.getByText("Select at least one persona").waitFor(WAIT);
    assertNoErrors(page);
  },

  async "the monitor shows the metrics"(page) {
    await page.getByRole("link", { name: "Monitor" }).click();
    await page.waitForFunction(() => Number(document.querySelector(".tile dd")?.textContent) >= 5, null, WAIT);
    await page.locator("svg[aria-label*='Tokens per second: generated']").waitFor(WAIT);
    assertNoErrors(page);
  },

  async "every view fits a narrow screen and is accessible in both themes"(page) {
    await page.setViewportSize({ width: 360, height: 740 });
    for (const theme of ["light", "dark"]) {
      await page.getByRole("button", { name: /^Theme/ }).click();
      assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), theme);
      for (const link of await page.locator(".tabs a:visible").all()) {
        await link.click();
        await page.waitForTimeout(300);
        const width = await page.evaluate(() => document.documentElement.scrollWidth);
        assert.ok(width <= 360, `${await link.textContent()}: ${width} px wide`);
        assert.deepEqual(await accessibilityViolations(page, playwright), [], `${await link.textContent()}, ${theme}`);
      }
    }
    await page.setViewportSize({ width: 1280, height: 900 });
    assertNoErrors(page);
  },

  async "every control is reachable by keyboard"(page) {
    await page.locator("main").focus();
    await page.keyboard.press("2");
    await page.getByRole("heading", { name: "Personas", level: 1 }).waitFor(WAIT);
    await page.locator(".skip").focus();
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.id), "main");
    assert.equal(new URL(page.url()).hash, "#personas");
    await page.keyboard.press("?");
    await page.getByRole("dialog").waitFor(WAIT);
    await page.keyboard.press("Escape");
    await page.keyboard.press("/");
    assert.equal(await page.evaluate(() => document.activeElement.id), "prompt");
    // In every view, each element that Tab reaches is visible, has a name and shows the focus.
    for (const link of await page.locator(".tabs a:visible").all()) {
      await link.click();
      await page.waitForTimeout(200);
      await page.evaluate(() => document.activeElement?.blur());
      const reached = new Set();
      for (let press = 0; press < 60; press += 1) {
        await page.keyboard.press("Tab");
        const at = await page.evaluate(() => {
          const node = document.activeElement;
          if (!node || node === document.body) return null;
          node.dataset.reached ??= String(document.querySelectorAll("[data-reached]").length);
          const box = node.getBoundingClientRect();
          const name = node.getAttribute("aria-label") ?? node.labels?.[0]?.textContent ?? node.textContent ?? "";
          return { id: node.dataset.reached, html: node.outerHTML.slice(0, 120), seen: box.width > 1 && box.height > 1, ring: getComputedStyle(node).outlineStyle !== "none", named: name.trim() !== "" };
        });
        if (!at || reached.has(at.id)) break;
        reached.add(at.id);
        assert.ok(at.seen && at.ring && at.named, JSON.stringify(at));
      }
      // Starting after the view's own link; the monitor has the fewest elements.
      assert.ok(reached.size >= 4, `${await link.textContent()}: Tab reaches ${reached.size} elements`);
    }
    assertNoErrors(page);
  },

  async "the page reconnects to a restarted server"(page) {
    await page.getByRole("link", { name: "Playground" }).click();
    await server.stop();
    await page.locator("#banner:not([hidden])").waitFor(WAIT);
    assert.match(await page.locator("#banner").textContent(), /does not respond/);
    server = await serve(lory, home, SERVE, server.port);
    await page.locator("#banner").waitFor({ state: "hidden", ...WAIT });
    await page.getByRole("button", { name: "Generate", exact: true }).click();
    await page.waitForFunction(() => !document.querySelector("[aria-busy=true]") && document.querySelectorAll(".stats b").length >= 12, null, WAIT);
    // Published versions survive the restart.
    await page.getByRole("link", { name: "Personas" }).click();
    await page.locator("[data-name=warm]").getByText("version 1").first().waitFor(WAIT);
    assertNoErrors(page, /ERR_CONNECTION|Failed to load resource/);
  },

  async "a server with keys asks for one, and the page keeps it for the tab only"() {
    const secret = "secret-of-the-studio-test-0123456789abcdef";
    const { createHash } = await import("node:crypto");
    const sha256 = createHash("sha256").update(secret).digest("hex");
    writeFileSync(join(home, "keys.toml"), `[[key]]\nname = "me"\nsha256 = "${sha256}"\nadmin = true\n`);
    const guarded = await serve(lory, home, [...SERVE, "--keys", "keys.toml"]);
    try {
      const page = await open(browser, guarded.address);
      await page.getByLabel("API key", { exact: true }).fill("wrong");
      await page.getByRole("button", { name: "Use this key" }).click();
      await page.getByText("The server rejected this key").waitFor(WAIT);
      await page.getByLabel("API key", { exact: true }).fill(secret);
      await page.getByRole("button", { name: "Use this key" }).click();
      await page.getByRole("button", { name: "Generate", exact: true }).click();
      await page.locator(".answer .stats b").first().waitFor(WAIT);
      assert.match(await page.locator("pre.code").textContent(), /\$LORY_KEY/);
      assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes("secret")), false);
      assertNoErrors(page, /status of 401/);
      await page.context().close();
    } finally {
      await guarded.stop();
    }
  },
};

try {
  const page = await open(browser, server.address);
  for (const [name, flow] of Object.entries(flows)) {
    try {
      await flow(page);
      console.log(`ok: ${name}`);
    } catch (error) {
      await page.screenshot({ path: join(playwright, "failed.png") }).catch(() => {});
      console.error(`failed: ${name} (see ${join(playwright, "failed.png")})\n${page.errors.join("\n")}`);
      throw error;
    }
  }
} finally {
  await browser.close();
  await server.stop();
}
