// The page of alerts: a rule is previewed, added, disabled and removed by forms, with and without JavaScript, in every size.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { VIEWS, check, launch, logIn, open } from "../lib/browser.mjs";
import { Bench, PASSWORD } from "../lib/service.mjs";

let bench;
let browser;

before(async () => {
  [bench, browser] = await Promise.all([Bench.start(), launch()]);
  await bench.pair();
  await bench.command("plan", "set", "--download", "100M", "--upload", "40M");
});

after(async () => {
  await browser?.close();
  await bench?.stop();
});

for (const javaScriptEnabled of [true, false]) {
  test(`a rule is previewed, added, disabled and removed ${javaScriptEnabled ? "with" : "without"} JavaScript`, async () => {
    const { page } = await open(browser, bench.url, { javaScriptEnabled });
    await logIn(page, PASSWORD);
    await page.goto("/alerts");
    await page.getByLabel("What it watches").selectOption("upload");
    await page.getByLabel("It is bad").selectOption("below_plan");
    await page.getByLabel("Value", { exact: true }).fill("70");
    await page.getByRole("button", { name: "Preview", exact: true }).click();
    await page.getByText("It would not have fired").waitFor();
    assert.equal(await page.getByLabel("Value", { exact: true }).inputValue(), "70", "the form is as it was");
    await page.getByRole("button", { name: "Add", exact: true }).click();
    await page.getByText("The rule is added.").waitFor();
    await page.getByRole("button", { name: "Disable upload" }).click();
    await page.getByText("The rule is changed.").waitFor();
    await page.getByText("Remove upload").click();
    await page.getByRole("button", { name: "Remove", exact: true }).click();
    await page.getByText("The rule is removed").waitFor();
  });
}

test("rules and their preview are readable in every size and colour", async () => {
  await bench.command("rule", "add", "--suggested");
  for (const { name, ...view } of VIEWS) {
    const tab = await open(browser, bench.url, view);
    await logIn(tab.page, PASSWORD);
    await tab.page.goto("/alerts?preview=outage");
    await check(tab, name);
    await tab.context.close();
  }
});
