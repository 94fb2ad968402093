// What holds on every page: in both sizes and colours, by keyboard alone, without JavaScript, with hostile names, and how much it
// weighs.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { VIEWS, check, launch, logIn, open } from "../lib/browser.mjs";
import { PATHS } from "../lib/paths.mjs";
import { Bench, PASSWORD } from "../lib/service.mjs";

let bench;
let browser;

before(async () => {
  // A test is long enough to be found and cancelled by keyboard.
  [bench, browser] = await Promise.all([Bench.start({ PACKETPARAMEDIC_DURATION: "20s" }), launch()]);
  await bench.pair("<img src=x onerror=alert(1)>");
  await bench.command("plan", "set", "--download", "1G", "--upload", "1G", "--name", "<script>alert(2)</script>");
  await bench.command("schedule", "add", "--name", "nightly", "--cron", "30 3 * * *", "--yes");
  await bench.command("monitor", "add", "host:127.0.0.1", "--name", "own");
  await bench.command("speed-test", "-t", "1", "--idle", "1", "--json");
});

after(async () => {
  await browser?.close();
  await bench?.stop();
});

for (const view of VIEWS) {
  test(`every page at ${view.name}`, async () => {
    const tab = await open(browser, bench.url, view);
    await logIn(tab.page, PASSWORD);
    for (const path of [...PATHS, "/monitors/own"]) {
      await tab.page.goto(path);
      await check(tab, path);
    }
  });
}

test("on a wall, what the line is like is seen without scrolling", async () => {
  const { page } = await open(browser, bench.url, { viewport: { width: 1920, height: 1080 } });
  await page.goto("/");
  const main = ["section.verdict", "section[aria-labelledby=last] .figures", "section[aria-labelledby=day] .figures"];
  for (const selector of [...main, "section[aria-labelledby=coming] .facts", "section[aria-labelledby=monitors] .strip"]) {
    const box = await page.locator(selector).first().boundingBox();
    assert.ok(box.y >= 0 && box.y + box.height <= 1080, `${selector}: ${JSON.stringify(box)}`);
    assert.ok(box.x >= 0 && box.x + box.width <= 1920, `${selector}: ${JSON.stringify(box)}`);
  }
});

test("every page can be read without JavaScript, and by a viewer without login", async () => {
  const { page } = await open(browser, bench.url, { javaScriptEnabled: false, viewport: { width: 390, height: 844 } });
  for (const path of PATHS) {
    await page.goto(path);
    const heading = await page.locator("h1").textContent();
    assert.ok(heading.trim().length > 0, path);
    assert.ok((await page.locator("main").innerText()).trim().length > 20, path);
  }
});

test("the main flow needs the keyboard alone", async () => {
  const { page } = await open(browser, bench.url);
  await page.goto("/");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the content");
  await page.keyboard.press("Enter");
  await tabTo(page, "Measure now");
  await page.keyboard.press("Enter");
  await page.locator("[data-live]").waitFor();
  await tabTo(page, "Cancel the test");
  await page.keyboard.press("Enter");
  await page.getByText("The test is cancelled.").waitFor();
  await page.goto("/login");
  // The field has the focus by itself, a moment after the page is there.
  await page.locator("input[type=password]:focus").waitFor();
  await page.keyboard.type(PASSWORD);
  await page.keyboard.press("Enter");
  await page.getByText("You are logged in.").waitFor();
  await tabTo(page, "Settings");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Paired reflectors" }).waitFor();
});

/** Presses Tab until the element with this text has the focus, which must be visible. */
async function tabTo(page, text) {
  for (let presses = 0; presses < 60; presses += 1) {
    await page.keyboard.press("Tab");
    const focused = await page.evaluate(() => {
      const { activeElement } = document;
      const { outlineStyle, outlineWidth } = getComputedStyle(activeElement);
      return { text: activeElement.textContent.trim(), isVisible: outlineStyle !== "none" && outlineWidth !== "0px" };
    });
    if (focused.text === text) {
      assert.ok(focused.isVisible, `the focus of ${text} can be seen`);
      return;
    }
  }
  assert.fail(`Tab does not reach ${text}`);
}

test("times are of the viewer's zone, and of UTC in the title", async () => {
  const { page } = await open(browser, bench.url, { timezoneId: "Asia/Tokyo" });
  // A time of another day has the day with it.
  await page.clock.setFixedTime(Date.now() + 3 * 86_400_000);
  await page.goto("/");
  const time = page.locator("section[aria-labelledby=last] time").first();
  const at = new Date(await time.getAttribute("datetime"));
  const expected = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short", timeZone: "Asia/Tokyo" }).format(at);
  assert.equal(await time.textContent(), expected);
  assert.match(await time.getAttribute("title"), / UTC$/);
});

test("the first page has at most 60 KiB over the wire, and does not jump", async () => {
  const { page, context } = await open(browser, bench.url, { viewport: { width: 390, height: 844 } });
  const session = await context.newCDPSession(page);
  await session.send("Network.enable");
  let bytes = 0;
  session.on("Network.loadingFinished", (event) => (bytes += event.encodedDataLength));
  await page.goto("/", { waitUntil: "networkidle" });
  assert.ok(bytes > 0 && bytes <= 60 * 1024, `${bytes} bytes`);
  const paint = await page.evaluate(async () => {
    const [first] = performance.getEntriesByName("first-contentful-paint");
    const shifts = await new Promise((resolve) => {
      let sum = 0;
      new PerformanceObserver((list) => list.getEntries().forEach((entry) => (sum += entry.value))).observe({ type: "layout-shift", buffered: true });
      requestAnimationFrame(() => requestAnimationFrame(() => resolve(sum)));
    });
    return { first: first.startTime, shifts };
  });
  assert.ok(paint.shifts < 0.1, `layout shift ${paint.shifts}`);
  console.log(`first page: ${bytes} bytes, first paint after ${Math.round(paint.first)} ms, layout shift ${paint.shifts.toFixed(3)}`);
});
