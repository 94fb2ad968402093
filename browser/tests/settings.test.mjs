// The settings: schedules with their monthly data, monitors, the plan, tokens, reflectors; rows of a file are marked.
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { check, launch, logIn, open } from "../lib/browser.mjs";
import { Bench, PASSWORD } from "../lib/service.mjs";

let bench;
let browser;
let tab;

before(async () => {
  [bench, browser] = await Promise.all([Bench.start(), launch()]);
  await bench.pair();
  tab = await open(browser, bench.url, { viewport: { width: 390, height: 844 } });
  await logIn(tab.page, PASSWORD);
});

after(async () => {
  await browser?.close();
  await bench?.stop();
});

test("a schedule is added after a look at the data that it uses", async () => {
  const { page } = tab;
  await page.goto("/settings/schedules");
  await page.getByLabel("When", { exact: true }).selectOption({ label: "every night at 3:30" });
  await page.getByText("More choices").click();
  await page.getByLabel("Quiet hours").fill("25:00-26:00");
  await page.getByRole("button", { name: "Look at the data it uses" }).click();
  await page.getByRole("alert").getByText("quiet hours").waitFor();
  await check(tab, "wrong quiet hours");
  await page.getByLabel("Quiet hours").fill("08:00-20:00");
  await page.getByRole("button", { name: "Look at the data it uses" }).click();
  await page.getByText(/a month/).first().waitFor();
  await page.getByText(/30 tests in 30 days/).waitFor();
  await check(tab, "the confirmation of a schedule");
  await page.getByRole("button", { name: "Add the schedule" }).click();
  await page.getByText("The schedule is added.").waitFor();
  await page.getByRole("button", { name: /^Disable/ }).click();
  await page.getByText("disabled").waitFor();
  const stored = JSON.parse(await bench.command("schedule", "list", "--json"));
  assert.equal(stored[0].enabled, false);
  assert.equal(stored[0].quiet_hours, "08:00-20:00");
  await page.getByText(/^Remove/).first().click();
  await page.getByRole("button", { name: "Remove", exact: true }).click();
  await page.getByText("The schedule is removed.").waitFor();
});

test("a row that a file made is marked, and the page says what becomes of a change", async () => {
  const file = join(bench.folder, "wanted.toml");
  await writeFile(file, '[plan]\nname = "Fibre"\ndownload = "250M"\nupload = "40M"\n\n[[schedule]]\nname = "nightly"\ncron = "30 3 * * *"\npeer = "attic"\n\n[[monitor]]\nname = "router"\ntarget = "gateway"\ninterval = "10s"\n');
  await bench.command("apply", file);
  const { page } = tab;
  await page.goto("/settings/schedules");
  await page.getByText("made by a file").waitFor();
  await page.getByText("changes back").waitFor();
  await check(tab, "a schedule of a file");
  await page.goto("/settings/monitors");
  await page.getByText("made by a file").waitFor();
  await page.getByText("changes back").waitFor();
  await check(tab, "a monitor of a file");
  await page.goto("/settings/plan");
  await page.getByText("by a file").waitFor();
  assert.equal(await page.locator("#download").inputValue(), "250");
});

test("the plan is set, compared and removed", async () => {
  const { page } = tab;
  await page.goto("/settings/plan");
  await page.locator("#download").fill("500");
  await page.locator("#download_minimum").fill("600");
  await page.locator("#upload").fill("50");
  await page.getByRole("button", { name: "Save the plan" }).click();
  await page.getByRole("alert").getByText("the minimum must not exceed").waitFor();
  await page.locator("#download_minimum").fill("200");
  await page.getByRole("button", { name: "Save the plan" }).click();
  await page.getByText("The plan is saved.").waitFor();
  const { plan } = JSON.parse(await bench.command("plan", "show", "--json"));
  assert.equal(plan.download.minimum_bps, 200_000_000);
  await page.getByRole("button", { name: "Remove the plan" }).click();
  await page.getByText("The plan is removed.").waitFor();
});

test("monitors are added, disabled and removed", async () => {
  const { page } = tab;
  await page.goto("/settings/monitors");
  await page.getByLabel("Target").fill("host:127.0.0.1");
  await page.getByLabel(/^Name/).fill("own");
  await page.getByLabel(/^A probe every/).fill("5s");
  await page.getByRole("button", { name: "Add", exact: true }).click();
  await page.getByText("The monitor is added.").waitFor();
  await page.getByRole("heading", { name: "own" }).waitFor();
  await page.getByRole("button", { name: "Disable own" }).click();
  await page.getByText("The monitor is changed.").waitFor();
  await page.getByText("Remove own").click();
  await page.getByRole("button", { name: "Remove", exact: true }).click();
  await page.getByText("The monitor is removed.").waitFor();
});

test("a token is shown once, works, and is removed", async () => {
  const { page } = tab;
  await page.goto("/settings/tokens");
  await page.getByLabel("Name").fill("grafana");
  await page.getByRole("button", { name: "Add the token" }).click();
  const secret = (await page.locator("pre").textContent()).trim();
  await check(tab, "a new token");
  const asked = () => fetch(`${bench.url}/api/v1/status`, { headers: { authorization: `Bearer ${secret}` } });
  assert.equal((await asked()).status, 200);
  await page.goto("/settings/tokens");
  assert.equal(await page.getByText(secret).count(), 0);
  await page.getByRole("button", { name: "Remove grafana" }).click();
  await page.getByText("The token is removed.").waitFor();
  assert.equal((await asked()).status, 401);
});

test("a reflector is renamed and removed", async () => {
  const { page } = tab;
  await page.goto("/settings");
  await page.getByText("Rename or remove attic").click();
  await page.getByLabel("New name").fill("cellar");
  await page.getByRole("button", { name: "Rename" }).click();
  await page.getByText("The reflector has its new name.").waitFor();
  await page.getByText("Rename or remove cellar").click();
  await page.getByRole("button", { name: "Remove" }).click();
  await page.getByText("The reflector is removed.").waitFor();
});
