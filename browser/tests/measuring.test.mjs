// "Measure now": live progress by events, cancel, the result; also without JavaScript and for a viewer who comes later.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { check, launch, open } from "../lib/browser.mjs";
import { Bench } from "../lib/service.mjs";

let bench;
let browser;

before(async () => {
  [bench, browser] = await Promise.all([Bench.start(), launch()]);
  await bench.pair();
});

after(async () => {
  await browser?.close();
  await bench?.stop();
});

test("a test is drawn as it goes on, and its result stands on the page when it has ended", async () => {
  const tab = await open(browser, bench.url, { viewport: { width: 1280, height: 900 } });
  const { page } = tab;
  await page.goto("/");
  await page.getByRole("button", { name: "Measure now" }).click();
  const live = page.locator("[data-live]");
  await live.waitFor();
  await live.getByText("Measures the latency without load.").waitFor();
  await page.waitForFunction(() => /\d/.test(document.querySelector("[data-latency]").textContent));
  await live.getByText("Measures the download.").waitFor();
  await page.waitForFunction(() => /bit\/s/.test(document.querySelector("[data-download]").textContent));
  await live.locator("canvas").waitFor();
  const painted = await live.locator("canvas").evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.some((value) => value !== 0);
  });
  assert.ok(painted, "the plot shows something");
  const value = await live.locator("progress").evaluate((bar) => bar.value / bar.max);
  assert.ok(value > 0 && value <= 1, `progress ${value}`);
  await check(tab, "a running test");
  await live.getByText("Measures the upload.").waitFor();

  // A second viewer who comes now sees where it is.
  const later = await open(browser, bench.url, { javaScriptEnabled: false });
  await later.page.goto("/");
  await later.page.getByText("Measures the upload.").waitFor();

  await page.getByRole("button", { name: "Measure now" }).waitFor();
  await page.getByText("The last result").waitFor();
  await page.locator("dd.download").waitFor();
  await page.getByText(/against/).first().waitFor();
  assert.equal(await page.locator("[data-live]").count(), 0);
  await check(tab, "the first page with a result");
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
  const long = other("speed-test", "--json-stream", "-t", "60", "--idle", "0.1", "--download", "-b", "5M", "-P", "1");
  await long.line(/"interval"/);
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
  long.child.kill("SIGINT");
  await long.ended;
  await page.locator("[data-live]").getByText("Measures the latency without load.").waitFor();
  await page.getByRole("button", { name: "Measure now" }).waitFor();
});

test("of two tests of this device one waits, and cancelling it leaves the other alone", async () => {
  const { page } = await open(browser, bench.url);
  await page.goto("/");
  const options = ["speed-test", "--json-stream", "-t", "60", "--idle", "0.1", "--download", "-b", "5M", "-P", "1"];
  const first = bench.spawn("the first test", "packetparamedic", options);
  await first.line(/"interval"/);
  const second = bench.spawn("the second test", "packetparamedic", options);
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

test("a test that another viewer starts appears by itself", async () => {
  const { page } = await open(browser, bench.url);
  await page.clock.install();
  await page.goto("/");
  const other = await open(browser, bench.url);
  await other.page.goto("/");
  await other.page.getByRole("button", { name: "Measure now" }).click();
  await other.page.locator("[data-live]").waitFor();
  // The page is read again every 30 s.
  await page.clock.fastForward(31_000);
  await page.locator("[data-live]").waitFor();
  await other.page.getByRole("button", { name: "Cancel the test" }).click();
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
