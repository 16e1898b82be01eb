// What the studio must do, in a real browser: node flows.mjs LORY HOME PLAYWRIGHT. HOME is what main.rs made.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

import { barriers, browse, open, serve } from "./browser.mjs";

const [lory, home, playwright] = process.argv.slice(2);
const SERVE = ["--base", "tiny.gguf", "--personas", "personas"];
const WAIT = { timeout: 30_000 };

let server = await serve(lory, home, SERVE);
const browser = await browse(playwright);

/** Takes out what `known` matches, which was to be expected; the rest is an error. */
function clean(page, known = /$^/) {
  const wrong = page.wrong.splice(0).filter((text) => !known.test(text));
  assert.deepEqual(wrong, []);
}

/** Waits until the page says this in passing. */
const toast = (page, text, timeout = WAIT.timeout) => page.locator(".toast", { hasText: text }).first().waitFor({ timeout });

const flows = {
  async "one prompt is answered side by side, and nothing moves"(page) {
    await page.getByRole("heading", { name: "Hear the tones" }).waitFor(WAIT);
    await page.getByRole("button", { name: "Ask" }).waitFor(WAIT);
    assert.equal(await page.locator(".answer").count(), 3);
    await page.evaluate(() => document.fonts.ready);
    await page.getByLabel("Prompt").fill("Where is my order?");
    await page.keyboard.press("Control+Enter");
    await page.waitForTimeout(600);
    await page.evaluate(() => (window.shifts = []));
    // Again, without any input in the last half second, which would excuse a shift.
    await page.evaluate(() => document.querySelector(".composer").requestSubmit());
    await page.waitForFunction(() => document.querySelectorAll(".numbers b").length >= 12 && !document.querySelector("[aria-busy=true]"), null, WAIT);
    assert.deepEqual(await page.evaluate(() => window.shifts), []);
    for (const text of await page.locator(".answer .text").allTextContents()) assert.ok(text.length > 0);
    assert.match(await page.locator(".answer .numbers").first().textContent(), /first token .+tokens\/s .+tokens \d+/);
    // The lines that ask the same.
    const curl = await page.locator("pre.code").textContent();
    assert.ok(curl.includes(`${server.address}/generate`) && curl.includes('"prompt":"Where is my order?"'), curl);
    await page.getByRole("button", { name: "Python" }).click();
    assert.match(await page.locator("pre.code").textContent(), /urllib\.request/);
    assert.match(await page.locator(".differences").textContent(), /of the words are the same/);
    clean(page);
  },

  async "the parts compute what they should"(page) {
    const found = await page.evaluate(async () => {
      const { diff, alike } = await import("/studio/diff.js");
      const { quantile, rate } = await import("/studio/metrics.js");
      const { ceiling } = await import("/studio/chart.js");
      const { curl } = await import("/studio/code.js");
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
        alike: alike(diff("a b c d", "a b c e")),
        nothing: alike(diff("", "")),
        median: quantile(before, now, "t", 0.5),
        high: quantile(before, now, "t", 0.9),
        none: quantile(now, now, "t", 0.5),
        rate: rate(before, now, "n"),
        restarted: rate(now, { ...before, at: 20 }, "n"),
        ceiling: [0, 0.3, 1, 7, 120].map(ceiling),
        curl: curl({ prompt: "it's" }, false).split("\n").at(-1),
        said: [bytes(9_740_000), duration(75)],
        // CRC-32 of "abc" is 0x352441c2.
        crc: [...archive.slice(14, 18)],
      };
    });
    assert.deepEqual(found, {
      diff: [
        { text: "the ", in: "both" },
        { text: "red ", in: "left" },
        { text: "blue ", in: "right" },
        { text: "car stops ", in: "both" },
        { text: "now", in: "right" },
      ],
      alike: 0.75,
      nothing: 1,
      median: 1,
      high: 1.8,
      none: null,
      rate: 3,
      restarted: 0,
      ceiling: [1, 0.5, 1, 10, 200],
      curl: `  -d '{"prompt":"it'\\''s"}'`,
      said: ["9.3 MiB", "1 min 15 s"],
      crc: [0xc2, 0x41, 0x24, 0x35],
    });
  },

  async "the same seed says the same, and the slider asks a blend"(page) {
    const text = page.locator(".answer .text").first();
    const before = await text.textContent();
    await page.getByRole("button", { name: "Again" }).first().click();
    await page.waitForFunction(() => !document.querySelector("[aria-busy=true]"), null, WAIT);
    assert.equal(await text.textContent(), before);
    await page.getByLabel("Share of the first tone in the blend").fill("70");
    const blend = page.locator(".answer", { hasText: "formal*0.7+warm*0.3" });
    await blend.locator(".numbers b").first().waitFor(WAIT);
    // A variable of the system prompt goes with those who have it.
    await page.getByText("Settings", { exact: true }).click();
    await page.getByLabel("{{shop}}").fill("Nile Shoes");
    await page.getByLabel("The lines for").selectOption("warm");
    assert.match(await page.locator("pre.code").textContent(), /"variables": \{"shop": "Nile Shoes"\}/);
    clean(page);
  },

  async "a persona is published, made a canary of, taken back and removed"(page) {
    await page.getByRole("link", { name: "Personas" }).click();
    const warm = page.locator("[data-name=warm]");
    await warm.getByText("in the folder, not published").waitFor(WAIT);
    await warm.locator("summary").first().click();
    await warm.getByRole("button", { name: "Publish it" }).click();
    await toast(page, "warm is published");
    await warm.getByText("current", { exact: true }).waitFor(WAIT);

    // Another adapter, as a new version that waits.
    await page.locator("input[type=file]").first().setInputFiles(join(home, "third"));
    await page.getByText("runs on this base").waitFor(WAIT);
    assert.match(await page.locator(".facts").first().textContent(), /Rank, alpha4/);
    await page.getByLabel("Publish it as").fill("warm");
    await page.getByLabel("The name means it from now on").uncheck();
    await page.getByRole("button", { name: "Publish", exact: true }).click();
    await toast(page, "warm@2 is published");

    await warm.getByRole("button", { name: "Canary …" }).click();
    await page.getByRole("button", { name: "Start the canary" }).click();
    await warm.getByText("canary: 10% to 2").waitFor(WAIT);
    await warm.getByRole("button", { name: "End the canary" }).click();
    await toast(page, "The canary has ended");
    await warm.getByRole("button", { name: "Make current" }).click();
    await page.getByRole("button", { name: "Make it current" }).click();
    await toast(page, "warm is version 2");
    await warm.getByRole("button", { name: "Make current" }).click();
    await page.getByRole("button", { name: "Make it current" }).click();
    await toast(page, "warm is version 1");

    await warm.getByRole("button", { name: "Remove …" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByRole("textbox").fill("warm@1");
    await dialog.getByRole("button", { name: "Remove" }).click();
    assert.ok(await dialog.isVisible(), "another name than the version's removes nothing");
    await dialog.getByRole("textbox").fill("warm@2");
    await dialog.getByRole("button", { name: "Remove" }).click();
    await toast(page, "warm@2 is removed");
    clean(page);
  },

  async "an upload that is no adapter is refused, and says why"(page) {
    const nonsense = join(home, "nonsense.zip");
    writeFileSync(nonsense, "no archive");
    await page.locator("input[type=file]").nth(1).setInputFiles(nonsense);
    await page.getByText("no zip archive that can be read").waitFor(WAIT);
    clean(page, /status of 400/);
  },

  async "rows that are broken are refused by line"(page) {
    await page.getByRole("link", { name: "Train" }).click();
    const file = page.locator(".view[aria-label=Train] input[type=file]");
    await file.setInputFiles(join(home, "broken.jsonl"));
    await page.getByText(/broken\.jsonl:2/).waitFor(WAIT);
    clean(page, /status of 400/);
  },

  async "rows become a tone that is heard"(page) {
    const file = page.locator(".view[aria-label=Train] input[type=file]");
    await file.setInputFiles(join(home, "rows.jsonl"));
    await page.getByText("12 rows,").waitFor(WAIT);
    assert.match(await page.locator(".rendered mark").first().textContent(), /Answer \d+\./);
    assert.equal(await page.getByLabel("Name of the tone").inputValue(), "rows");
    await page.getByLabel("Name of the tone").fill("cheerful");
    await page.getByLabel("Passes over the rows").fill("2");
    await page.getByText(/steps, .*tokens, .*of memory/).waitFor(WAIT);
    await page.getByRole("button", { name: "Train", exact: true }).click();
    await toast(page, "cheerful is on its way");
    await toast(page, "cheerful@1 is published", 120_000);
    assert.equal(await page.locator(".plot.loss:visible").count(), 1);
    await page.getByText("What it answers to questions that it did not learn from").click();
    await page.getByRole("heading", { name: "The row answers" }).first().waitFor(WAIT);
    await page.locator(".job").getByRole("link", { name: "Listen" }).click();
    // By the name that clients ask for, once.
    assert.deepEqual(await page.locator(".chip[aria-pressed]", { hasText: "cheerful" }).allTextContents(), ["cheerful"]);
    assert.equal(await page.getByLabel("The lines for").inputValue(), "cheerful");
    await page.getByRole("button", { name: "Ask" }).click();
    await page.locator(".answer", { hasText: "cheerful@1" }).locator(".numbers b").first().waitFor(WAIT);
    await page.waitForFunction(() => !document.querySelector("[aria-busy=true]"), null, WAIT);
    clean(page);
  },

  async "what is trained waits, is heard beside the version in service, and published"(page) {
    await page.getByRole("link", { name: "Train" }).click();
    await page.locator(".view[aria-label=Train] input[type=file]").setInputFiles(join(home, "rows.jsonl"));
    await page.getByText("12 rows,").waitFor(WAIT);
    await page.getByLabel("Name of the tone").fill("cheerful");
    await page.getByText("A new version of cheerful").waitFor(WAIT);
    await page.getByLabel("Passes over the rows").fill("1");
    await page.getByLabel(/Publish it when it is ready/).uncheck();
    await page.getByText("System prompt, and what").click();
    // No answer of a tiny random base says this, so the gate refuses it.
    await page.getByLabel(/^An answer matches/).fill("^never said$");
    await page.getByRole("button", { name: "Train", exact: true }).click();
    const job = page.locator(".job").first();
    await job.getByText("Its gate refused it; it is kept and not published.").waitFor({ timeout: 120_000 });
    await job.getByRole("button", { name: "Hear it beside cheerful@1" }).click();
    await toast(page, "cheerful@2 waits beside the one in service");
    await job.getByText(/of the words are the same\. Struck out: only cheerful@1\. Marked: only cheerful@2/).waitFor(WAIT);
    await job.getByRole("button", { name: "Make it current" }).click();
    await job.getByText("cheerful means cheerful@2 now.").waitFor(WAIT);
    await job.getByRole("button", { name: "Go back to cheerful@1" }).click();
    await job.getByText("cheerful means version 1; cheerful@2 waits.").waitFor(WAIT);
    clean(page);
  },

  async "answers come while it trains, and one can go back through them"(page) {
    await page.locator(".view[aria-label=Train] input[type=file]").setInputFiles(join(home, "many.jsonl"));
    await page.getByText("60 rows,").waitFor(WAIT);
    await page.getByLabel("Name of the tone").fill("patient");
    await page.getByLabel("Passes over the rows").fill("100");
    await page.getByLabel("While it trains, it answers").selectOption("own");
    const own = page.getByLabel("Prompts, one a line");
    await own.fill("a\nb\nc\nd\ne");
    assert.match(await own.evaluate((node) => node.validationMessage), /5 prompts; at most 4/);
    await own.fill("Where is it?\n\nWho are you?");
    assert.equal(await own.evaluate((node) => node.validationMessage), "");
    await page.getByText("More settings").click();
    await page.getByLabel("Rows of a step").fill("1");
    await page.getByRole("button", { name: "Train", exact: true }).click();
    await toast(page, "patient is on its way");
    const job = page.locator(".job").first();
    const slider = job.getByLabel("Step of the answers");
    // Two steps behind the first one: there is something to go back to.
    await job.locator(".stepping:visible").waitFor({ timeout: 120_000 });
    assert.deepEqual(await job.locator(".samples .asked").allTextContents(), ["Where is it?", "Who are you?"]);
    assert.equal(await job.getByRole("heading", { name: "Before training" }).count(), 2);
    assert.equal(await job.locator(".pages > [data-on]").count(), 2);
    assert.match(await slider.getAttribute("aria-valuetext"), /^step \d+, the newest$/);
    assert.deepEqual(await barriers(page, playwright), []);
    // Who has gone back stays there, whatever comes.
    await job.getByLabel("An earlier step").click();
    const earlier = await slider.inputValue();
    const most = await slider.getAttribute("max");
    await page.waitForFunction((most) => Number(document.querySelector(".stepping input").max) > Number(most), most, { timeout: 60_000 });
    assert.equal(await slider.inputValue(), earlier);
    assert.doesNotMatch(await slider.getAttribute("aria-valuetext"), /newest/);
    // And whoever is at the newest one goes along.
    await slider.fill(await slider.getAttribute("max"));
    await page.waitForFunction((most) => Number(document.querySelector(".stepping input").value) > Number(most), await slider.getAttribute("max"), { timeout: 60_000 });
    assert.match(await job.locator(".tag").first().textContent(), /^(running|sampling)$/);
    await job.getByRole("button", { name: "Give up" }).click();
    await page.getByRole("button", { name: "Give it up" }).click();
    await toast(page, "patient: cancelled");
    clean(page);
  },

  async "a blind vote is kept"(page) {
    await page.getByRole("link", { name: "Evaluate" }).click();
    await page.getByLabel("The first speaker").fill("warm");
    await page.getByLabel("The second speaker").fill("formal");
    await page.getByRole("button", { name: "Begin" }).click();
    const left = page.getByRole("button", { name: "Left is better" });
    await page.waitForFunction(() => [...document.querySelectorAll("button")].some((button) => button.textContent === "Left is better" && !button.disabled), null, WAIT);
    assert.doesNotMatch(await page.locator(".answers.two").textContent(), /warm@1|formal@1/);
    await left.click();
    await page.getByText(/Left was (warm|formal)@1/).waitFor(WAIT);
    await page.getByText("1 vote, 0 without a difference").waitFor(WAIT);
    clean(page);
  },

  async "a stored evaluation is a heat map"(page) {
    await page.getByRole("heading", { name: "Loss, in nats a token" }).waitFor(WAIT);
    assert.equal(await page.locator(".heat").count(), 3);
    assert.ok((await page.locator(".heat .cell").count()) >= 14);
    await page.getByText("Questions, answered side by side").click();
    await page.getByText("In transit.").waitFor(WAIT);
    clean(page);
  },

  async "an evaluation is measured on demand, and another one cancelled"(page) {
    const before = await page.getByLabel("Which evaluation").inputValue();
    for (const name of ["cheerful", "warm", "formal"]) assert.equal(await page.locator(".chip", { hasText: name }).getAttribute("aria-pressed"), "true");
    await page.getByRole("button", { name: "cheerful" }).click();
    await page.getByLabel("Add a version").selectOption("cheerful@1");
    await page.locator(".view[aria-label=Evaluate] input[type=file]").setInputFiles(join(home, "rows.jsonl"));
    await page.getByLabel("On these rows").locator("option:checked", { hasText: "rows.jsonl (12 rows)" }).waitFor({ state: "attached", ...WAIT });
    await page.getByLabel("Rows of each, at most").fill("3");
    await page.getByRole("button", { name: "Measure" }).click();
    const card = page.locator(".measuring").first();
    await card.getByText(/(warm@1, formal@1|formal@1, warm@1), cheerful@1/).waitFor(WAIT);
    assert.deepEqual(await barriers(page, playwright), []);
    await toast(page, "cheerful@1: measured", 120_000);
    await page.waitForFunction((before) => document.querySelector("[aria-label='Which evaluation']").value !== before, before, WAIT);
    const losses = page.locator(".heat", { has: page.getByRole("heading", { name: "Loss, in nats a token" }) });
    await losses.getByRole("rowheader", { name: "cheerful" }).waitFor(WAIT);
    assert.equal(await losses.getByRole("rowheader").count(), 3);
    assert.equal(await page.locator(".measuring").count(), 0);
    // Many rows take long enough to be found again after a reload, and cancelled.
    await page.locator(".view[aria-label=Evaluate] input[type=file]").setInputFiles(join(home, "long.jsonl"));
    await page.getByLabel("On these rows").locator("option:checked", { hasText: "long.jsonl" }).waitFor({ state: "attached", ...WAIT });
    await page.getByLabel("Rows of each, at most").fill("500");
    await page.getByRole("button", { name: "Measure" }).click();
    await card.getByText(/\d of \d/).waitFor(WAIT);
    await page.reload();
    await card.getByRole("button", { name: "Cancel" }).click();
    await card.getByText("cancelled").waitFor(WAIT);
    await card.getByRole("button", { name: "Forget" }).click();
    assert.equal(await page.locator(".measuring").count(), 0);
    for (const name of ["cheerful", "warm", "formal"]) await page.getByRole("button", { name }).click();
    await page.getByRole("button", { name: "Measure" }).click();
    await page.getByText("Choose at least one persona").waitFor(WAIT);
    clean(page);
  },

  async "the counters are watched"(page) {
    await page.getByRole("link", { name: "Watch" }).click();
    await page.waitForFunction(() => Number(document.querySelector(".tile dd")?.textContent) >= 5, null, WAIT);
    await page.locator("svg[aria-label*='Tokens a second: sampled']").waitFor(WAIT);
    clean(page);
  },

  async "every view fits a narrow screen in both colours, and has no barriers"(page) {
    await page.setViewportSize({ width: 360, height: 740 });
    for (const colour of ["light", "dark"]) {
      await page.getByRole("button", { name: /^Colours/ }).click();
      assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), colour);
      for (const link of await page.locator(".tabs a:visible").all()) {
        await link.click();
        await page.waitForTimeout(300);
        const width = await page.evaluate(() => document.documentElement.scrollWidth);
        assert.ok(width <= 360, `${await link.textContent()}: ${width} px wide`);
        assert.deepEqual(await barriers(page, playwright), [], `${await link.textContent()}, ${colour}`);
      }
    }
    await page.setViewportSize({ width: 1280, height: 900 });
    clean(page);
  },

  async "the keyboard leads everywhere"(page) {
    await page.locator("main").focus();
    await page.keyboard.press("2");
    await page.getByRole("heading", { name: "Personas", level: 1 }).waitFor(WAIT);
    await page.keyboard.press("?");
    await page.getByRole("dialog").waitFor(WAIT);
    await page.keyboard.press("Escape");
    await page.keyboard.press("/");
    assert.equal(await page.evaluate(() => document.activeElement.id), "prompt");
    // In every view, whatever the tabulator reaches can be seen, has a name and shows that it has the focus.
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
      // From the view's own link on: the counters have the fewest.
      assert.ok(reached.size >= 4, `${await link.textContent()}: the tabulator reaches ${reached.size} elements`);
    }
    clean(page);
  },

  async "a server that is started again is found again"(page) {
    await page.getByRole("link", { name: "Listen" }).click();
    await server.stop();
    await page.locator("#banner:not([hidden])").waitFor(WAIT);
    assert.match(await page.locator("#banner").textContent(), /Nothing answers/);
    server = await serve(lory, home, SERVE, server.port);
    await page.locator("#banner").waitFor({ state: "hidden", ...WAIT });
    await page.getByRole("button", { name: "Ask" }).click();
    await page.waitForFunction(() => !document.querySelector("[aria-busy=true]") && document.querySelectorAll(".numbers b").length >= 12, null, WAIT);
    // What was published is still there.
    await page.getByRole("link", { name: "Personas" }).click();
    await page.locator("[data-name=warm]").getByText("version 1").first().waitFor(WAIT);
    clean(page, /ERR_CONNECTION|Failed to load resource/);
  },

  async "a server with keys asks for one, for this tab only"() {
    const digest = "secret-of-the-studio-test-0123456789abcdef";
    const { createHash } = await import("node:crypto");
    const sha256 = createHash("sha256").update(digest).digest("hex");
    writeFileSync(join(home, "keys.toml"), `[[key]]\nname = "me"\nsha256 = "${sha256}"\nadmin = true\n`);
    const guarded = await serve(lory, home, [...SERVE, "--keys", "keys.toml"]);
    try {
      const page = await open(browser, guarded.address);
      await page.getByLabel("Key", { exact: true }).fill("wrong");
      await page.getByRole("button", { name: "Use this key" }).click();
      await page.getByText("The server does not take this key").waitFor(WAIT);
      await page.getByLabel("Key", { exact: true }).fill(digest);
      await page.getByRole("button", { name: "Use this key" }).click();
      await page.getByRole("button", { name: "Ask" }).click();
      await page.locator(".answer .numbers b").first().waitFor(WAIT);
      assert.match(await page.locator("pre.code").textContent(), /\$LORY_KEY/);
      assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes("secret")), false);
      clean(page, /status of 401/);
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
      console.error(`failed: ${name} (see ${join(playwright, "failed.png")})\n${page.wrong.join("\n")}`);
      throw error;
    }
  }
} finally {
  await browser.close();
  await server.stop();
}
