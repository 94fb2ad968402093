// The first start: set the password by a link, pair by code, say what the contract promises, plan tests.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { check, launch, open } from "../lib/browser.mjs";
import { Bench } from "../lib/service.mjs";

let bench;
let browser;

before(async () => {
  [bench, browser] = await Promise.all([Bench.start({ password: null }), launch()]);
  await bench.reflector();
});

after(async () => {
  await browser?.close();
  await bench?.stop();
});

test("the first start leads from the link of the console to the first page in three steps", async () => {
  const link = (await bench.command("token", "setup", "--quiet")).trim();
  const tab = await open(browser, bench.url, { viewport: { width: 390, height: 844 } });
  const { page } = tab;
  await page.goto("/");
  await page.getByText("Nothing has been measured yet.").waitFor();
  await check(tab, "the first page of a new service");

  await page.goto(link);
  await page.getByLabel("New password of the administrator").fill("correct horse battery");
  await page.getByRole("button", { name: "Set the password" }).click();
  await page.getByText("The password is set, and you are logged in.").waitFor();

  await page.getByRole("heading", { name: "1. Pair a reflector" }).waitFor();
  await page.getByLabel("Address of the reflector").fill(bench.address);
  await page.getByLabel("Pairing code").fill("WRONG-CODE");
  await page.getByRole("button", { name: "Pair" }).click();
  await page.getByRole("alert").getByText("the pairing code is not valid").waitFor();
  assert.equal(await page.getByLabel("Address of the reflector").inputValue(), bench.address, "what was entered stays");
  await check(tab, "a wrong code");

  await page.getByLabel("Pairing code").fill(await bench.code());
  await page.getByLabel(/^Name/).fill("Attic & <b>cellar</b>");
  await page.getByRole("button", { name: "Pair" }).click();

  await page.getByRole("heading", { name: "2. What does your contract promise?" }).waitFor();
  await page.locator("#download").fill("250");
  await page.locator("#upload").fill("fast");
  await page.getByRole("button", { name: "Save and go on" }).click();
  await page.getByRole("alert").getByText("is not a rate").waitFor();
  await check(tab, "a wrong plan");
  await page.locator("#upload").fill("40");
  await page.getByRole("button", { name: "Save and go on" }).click();

  await page.getByRole("heading", { name: "3. How often shall it measure?" }).waitFor();
  await page.getByText(/about .* a month/).first().waitFor();
  await check(tab, "the third step");
  await page.getByLabel(/Every 6 hours/).check();
  await page.getByRole("button", { name: "Finish" }).click();

  await page.getByRole("button", { name: "Measure now" }).waitFor();
  await page.goto("/settings/schedules");
  await page.getByText("every-6-hours").first().waitFor();
  await page.getByText("Attic & <b>cellar</b>").first().waitFor();
  await page.goto("/settings");
  await page.getByRole("heading", { name: "Attic & <b>cellar</b>" }).waitFor();
  await check(tab, "the settings after the first start");
});
