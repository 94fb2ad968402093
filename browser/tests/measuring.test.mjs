// "Measure now": live progress by events, cancel, the result; also without JavaScript and for a viewer who comes later.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { check, launch, open } from "../lib/browser.mjs";
import { Bench } from "../lib/service.mjs";

/** A test that needs no processor and lasts until it is cancelled: a loaded machine has the time that it needs. */
const long = (direction) => ["speed-test", "--json-stream", "-t", "60", "--idle", "0.1", `--${direction}`, "-b", "5M", "-P", "1"];
const LONG = long("download");

let bench;
let browser;

/** The phases that the page shows from now on, each once: a phase can be shorter than a test needs to look. */
async function recordPhases(page) {
  const shown = [];
  await page.exposeFunction("recordPhase", (text) => {
    if (shown.at(-1) !== text) {
      shown.push(text);
    }
  });
  await page.addInitScript(() => {
    const record = () => {
      const text = document.querySelector("[data-stage]")?.textContent;
      if (text?.startsWith("Measures")) {
        globalThis.recordPhase(text);
      }
    };
    new MutationObserver(record).observe(document, { subtree: true, childList: true, characterData: true });
  });
  return shown;
}

before(async () => {
  [bench, browser] = await Promise.all([Bench.start(), launch()]);
  await bench.pair();
});

after(async () => {
  await browser?.close();
  await bench?.stop();
});

test("a test goes through its phases, and its result stands on the page when it has ended", async () => {
  const tab = await open(browser, bench.url, { viewport: { width: 1280, height: 900 } });
  const { page } = tab;
  const shown = await recordPhases(page);
  await page.goto("/");
  await page.getByRole("button", { name: "Measure now" }).click();
  await page.locator("dd.download").waitFor();
  await page.getByRole("button", { name: "Measure now" }).waitFor();
  await page.getByText("The last result").waitFor();
  await page.getByText(/against/).first().waitFor();
  assert.equal(await page.locator("[data-live]").count(), 0);
  // On a loaded machine the page may come when the first phase has ended.
  const phases = ["Measures the latency without load.", "Measures the download.", "Measures the upload."];
  assert.ok(shown.length > 0, "the page shows the test");
  assert.deepEqual(shown, phases.slice(-shown.length));
  await check(tab, "the first page with a result");
});

test("a running test is drawn as it goes on, also for a viewer who comes later", async () => {
  for (const direction of ["download", "upload"]) {
    const running = bench.spawn(`the ${direction}`, "packetparamedic", long(direction));
    await running.line(/"interval"/);
    const tab = await open(browser, bench.url, { viewport: { width: 1280, height: 900 } });
    const { page } = tab;
    await page.goto("/");
    const live = page.locator("[data-live]");
    await live.getByText(`Measures the ${direction}.`).waitFor();
    await page.waitForFunction(() => /\d/.test(document.querySelector("[data-latency]").textContent));
    await page.waitForFunction((name) => /bit\/s/.test(document.querySelector(`[data-${name}]`).textContent), direction);
    await live.locator("canvas").waitFor();
    await page.waitForFunction(() => {
      const canvas = document.querySelector("[data-live] canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.some((value) => value !== 0);
    });
    const value = await live.locator("progress").evaluate((bar) => bar.value / bar.max);
    assert.ok(value > 0 && value <= 1, `progress ${value}`);
    await page.waitForFunction((before) => {
      const bar = document.querySelector("[data-live] progress");
      return bar.value / bar.max > before;
    }, value);
    await check(tab, `a running ${direction}`);

    const plain = await open(browser, bench.url, { javaScriptEnabled: false });
    await plain.page.goto("/");
    await plain.page.getByText(`Measures the ${direction}.`).waitFor();
    await page.getByRole("button", { name: "Cancel the test" }).click();
    assert.equal(await running.ended, 130);
    await page.getByRole("button", { name: "Measure now" }).waitFor();
  }
});

test("a running test can be cancelled", async () => {
  const { page } = await open(browser, bench.url);
  await page.goto("/");
  await page.getByRole("button", { name: "Measure now" }).click();
  await page.getByRole("button", { name: "Cancel the test" }).click();
  await page.getByText("The test is cancelled.").waitFor();
  await page.getByRole("button", { name: "Measure now" }).waitFor();
});

test("a test that waits shows its place in the queue of the reflector, can be cancelled, and has its turn", async () => {
  const other = await bench.otherAppliance();
  const first = other(...LONG);
  await first.line(/"interval"/);
  const tab = await open(browser, bench.url);
  const { page } = tab;
  await page.goto("/");
  await page.getByRole("button", { name: "Measure now" }).click();
  const place = /^Place 1 in the queue of the reflector; about \d+ s to wait\.$/;
  await page.locator("[data-live]").getByText(place).waitFor();
  await check(tab, "a test in the queue");
  const plain = await open(browser, bench.url, { javaScriptEnabled: false });
  await plain.page.goto("/");
  await plain.page.locator("[data-live]").getByText(/^Place 1 in the queue of the reflector/).waitFor();
  await page.getByRole("button", { name: "Cancel the test" }).click();
  await page.getByText("The test is cancelled.").waitFor();
  await page.getByRole("button", { name: "Measure now" }).click();
  await page.locator("[data-live]").getByText(place).waitFor();
  first.child.kill("SIGINT");
  await first.ended;
  await page.locator("section[aria-labelledby=last]").getByText("against").first().waitFor();
  await page.getByRole("button", { name: "Measure now" }).waitFor();
});

test("of two tests of this device one waits, and cancelling it leaves the other alone", async () => {
  const { page } = await open(browser, bench.url);
  await page.goto("/");
  const first = bench.spawn("the first test", "packetparamedic", LONG);
  await first.line(/"interval"/);
  const second = bench.spawn("the second test", "packetparamedic", LONG);
  const waiting = page.locator("[data-live]", { hasText: "Another test runs on this device; this one waits for its end." });
  await page.goto("/");
  await waiting.waitFor();
  assert.equal(await page.locator("[data-live]").count(), 2);
  await waiting.getByRole("button", { name: "Cancel the test" }).click();
  await page.getByText("The test is cancelled.").waitFor();
  assert.equal(await second.ended, 130);
  await page.locator("[data-live]").getByText("Measures the download.").waitFor();
  await page.getByRole("button", { name: "Cancel the test" }).click();
  assert.equal(await first.ended, 130);
  await page.getByRole("button", { name: "Measure now" }).waitFor();
});

test("without JavaScript a form starts the test, and the page is read again until it has ended", async () => {
  const { page } = await open(browser, bench.url, { javaScriptEnabled: false });
  await page.goto("/");
  const before = await page.locator("section[aria-labelledby=last] time").first().getAttribute("datetime");
  await page.getByRole("button", { name: "Measure now" }).click();
  await page.getByText("The test has begun.").waitFor();
  await page.locator("[data-live]").waitFor();
  // The browser does it by itself.
  await page.getByRole("button", { name: "Measure now" }).waitFor({ timeout: 30_000 });
  const after = await page.locator("section[aria-labelledby=last] time").first().getAttribute("datetime");
  assert.notEqual(after, before, "a new result");
});

test("a test that a command starts appears by itself", async () => {
  const { page } = await open(browser, bench.url);
  await page.clock.install();
  await page.goto("/");
  const running = bench.spawn("the test", "packetparamedic", LONG);
  await running.line(/"interval"/);
  // The page is read again every 30 s.
  await page.clock.fastForward(31_000);
  await page.locator("[data-live]").waitFor();
  await page.getByRole("button", { name: "Cancel the test" }).click();
  assert.equal(await running.ended, 130);
});

test("a page says that the service does not answer, and that it answers again", async () => {
  const { page, context } = await open(browser, bench.url);
  await page.clock.install();
  await page.goto("/");
  await context.setOffline(true);
  await page.clock.fastForward(31_000);
  await page.getByText("The service does not answer.").waitFor();
  await context.setOffline(false);
  await page.clock.fastForward(31_000);
  await page.getByText("The service does not answer.").waitFor({ state: "hidden" });
});
