// The pages that show what was measured: history, a run, monitors, outages, the report; also without JavaScript.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { check, launch, logIn, open } from "../lib/browser.mjs";
import { putResults } from "../lib/results.mjs";
import { Bench, PASSWORD } from "../lib/service.mjs";

const DAYS = 12;
let bench;
let browser;
let real;
let count;

before(async () => {
  [bench, browser] = await Promise.all([Bench.start(), launch()]);
  await bench.pair();
  real = JSON.parse(await bench.command("speed-test", "-t", "1", "--idle", "1", "--intervals", "--json"));
  count = await putResults(bench, real, DAYS);
  await bench.command("plan", "set", "--download", "100M", "--upload", "40M");
  await bench.command("monitor", "add", "reflector:attic", "--name", "attic");
});

after(async () => {
  await browser?.close();
  await bench?.stop();
});

/** Whether a canvas has anything on it. */
function isPainted(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.some((value) => value !== 0);
}

test("the history draws each chart from the table beside it", async () => {
  const tab = await open(browser, bench.url, { viewport: { width: 1280, height: 900 } });
  const { page } = tab;
  await page.goto("/history?period=month");
  const charts = page.locator(".chart canvas");
  await charts.first().waitFor();
  assert.equal(await charts.count(), 4, "download, upload, latency, loss");
  for (const canvas of await charts.all()) {
    assert.ok(await canvas.evaluate(isPainted), "the chart shows something");
  }
  const download = page.locator("section.chart", { has: page.getByRole("heading", { name: "Download", exact: true }) });
  assert.match(await download.locator("p").first().textContent(), new RegExp(`^${count + 1} runs: mean `));
  await download.getByText("As a table").click();
  const cells = await download.locator("tbody td[data-v]").count();
  assert.ok(cells > DAYS, `${cells} cells`);
  await check(tab, "history");
  await page.getByRole("link", { name: "Week" }).click();
  await page.waitForURL(/period=week/);
  assert.ok((await page.locator("#week-title").count()) === 1, "the map of the week");
  assert.equal(await page.locator("svg.heat rect").count(), 7 * 24);
});

test("the history is filtered by target and engine, and its runs are listed in pages", async () => {
  const { page } = await open(browser, bench.url);
  await page.goto("/history?period=all");
  await page.getByLabel("Target").selectOption("attic");
  await page.getByLabel("Engine").selectOption("tcp");
  await page.getByRole("button", { name: "Show" }).click();
  await page.waitForURL(/target=attic&engine=tcp/);
  const rows = page.locator("section[aria-labelledby=runs-title] tbody tr");
  assert.equal(await rows.count(), 25);
  await page.getByRole("link", { name: "Older runs" }).click();
  await page.waitForURL(/after=/);
  assert.equal(await rows.count(), count + 1 - 25);
  const csv = await page.locator("section.chart a", { hasText: "CSV" }).first().getAttribute("href");
  const table = await (await page.request.get(csv)).text();
  assert.equal(table.trim().split("\n").length, count + 2, "a head and every run");
  await page.goto("/history?period=all&target=nowhere");
  await page.getByText("No run in this time with this target and engine.").waitFor();
});

test("a run shows everything of its document, and has a permanent link", async () => {
  const tab = await open(browser, bench.url);
  const { page } = tab;
  await page.goto(`/runs/${real.id.slice(-12)}`);
  assert.equal(new URL(page.url()).pathname, `/runs/${real.id}`);
  await page.locator("svg.plot-of-run").waitFor();
  const text = await page.locator("main").innerText();
  for (const part of ["Limited by", "Latency by load", "Congestion control", "Hosts", "Validity", real.appliance.endpoint_id]) {
    assert.ok(text.includes(part), part);
  }
  await page.getByText("Without the measurements of its intervals").click();
  assert.ok((await page.locator("#document pre").textContent()).includes(`"id": "${real.id}"`));
  const document = await page.getByRole("link", { name: "The whole document as JSON" }).getAttribute("href");
  const saved = await (await page.request.get(document)).json();
  assert.deepEqual([saved.id, saved.download, saved.latency.idle.rtt_us], [real.id, real.download, real.latency.idle.rtt_us]);
  await check(tab, "a run");
  assert.equal(await page.getByRole("button", { name: "Delete this run" }).count(), 0, "not without login");
  await logIn(page, PASSWORD);
  await page.goto(`/runs/${real.id}`);
  await page.getByRole("button", { name: "Delete this run" }).waitFor();
});

test("a chart is drawn again in the colours of the system", async () => {
  const { page } = await open(browser, bench.url, { colorScheme: "light" });
  await page.goto("/history?period=month");
  const canvas = page.locator(".chart canvas").first();
  await canvas.waitFor();
  const before = await canvas.evaluate((canvas) => canvas.toDataURL());
  await page.emulateMedia({ colorScheme: "dark" });
  await page.waitForFunction((old) => document.querySelector(".chart canvas").toDataURL() !== old, before);
});

test("the monitors are listed with their state, and each has a page", async () => {
  const tab = await open(browser, bench.url);
  const { page } = tab;
  await page.goto("/monitors");
  await page.getByRole("link", { name: "attic" }).click();
  await page.waitForURL(/\/monitors\/attic/);
  assert.match(await page.locator("h1").textContent(), /attic\s+(running|paused|not reachable)/);
  await check(tab, "a monitor");
  await page.goto("/outages");
  await page.getByRole("heading", { name: "Outages", exact: true }).waitFor();
});

test("the report is previewed with its own styles, saved, and the same as that of the command", async () => {
  const tab = await open(browser, bench.url);
  const { page } = tab;
  await page.goto("/report");
  await check(tab, "the page of the report");
  await page.getByRole("button", { name: "Preview" }).click();
  await page.getByRole("heading", { name: "Report on an Internet line" }).waitFor();
  const text = await page.locator("main").innerText();
  for (const part of [
    `Download: ${count} runs on ${DAYS} days count`,
    "slower in the evening by",
    "the other end is in the same network",
    "What this report does not prove",
    "Contract\nDownload 100 Mbit/s; Upload 40.0 Mbit/s",
  ]) {
    assert.ok(text.includes(part), `${part}: ${text.slice(0, 3000)}`);
  }
  const columns = await page.locator(".summary div").first().evaluate((row) => getComputedStyle(row).display);
  assert.equal(columns, "flex", "the styles of the page apply");
  await check(tab, "the preview of the report");
  const printed = await page.pdf({ preferCSSPageSize: true });
  assert.equal(printed.subarray(0, 5).toString(), "%PDF-");
  await page.goBack();
  const [saved] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save the table (CSV)" }).click()]);
  assert.match(saved.suggestedFilename(), /^line-report-\d{4}-\d\d-\d\d\.csv$/);
  const table = (await readFile(await saved.path(), "utf8")).trim().split("\n");
  assert.equal(table.length, count + 2);
  const command = (await bench.command("report", "--format", "csv", "--zone", "UTC")).trim().split("\n");
  assert.deepEqual(command, table);
  const redacted = await bench.command("report", "--redact");
  assert.ok(!redacted.includes("attic") && !redacted.includes("203.0.113.7") && !redacted.includes("PP-"));
  assert.ok(redacted.includes("server 1"));
});

test("without JavaScript the same values stand in tables", async () => {
  const { page } = await open(browser, bench.url, { javaScriptEnabled: false });
  await page.goto("/history?period=month");
  await page.locator("section.chart summary").first().click();
  const cell = page.locator("section.chart tbody td[data-v]").first();
  assert.match(await cell.innerText(), /bit\/s$/);
  await page.goto("/report");
  await page.getByRole("button", { name: "Preview" }).click();
  await page.getByRole("heading", { name: "Report on an Internet line" }).waitFor();
});
