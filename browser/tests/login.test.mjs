// Login, log out, and the wait after wrong passwords.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { check, launch, logIn, open } from "../lib/browser.mjs";
import { Bench, PASSWORD } from "../lib/service.mjs";

let bench;
let browser;

before(async () => {
  // Behind a proxy nothing is answered without a login.
  [bench, browser] = await Promise.all([Bench.start({ PACKETPARAMEDIC_TRUSTED_PROXIES: "127.0.0.0/8" }), launch()]);
});

after(async () => {
  await browser?.close();
  await bench?.stop();
});

test("a page without login leads to the login, and that back to the page", async () => {
  const tab = await open(browser, bench.url);
  const { page } = tab;
  await page.goto("/settings/plan");
  assert.equal(new URL(page.url()).pathname, "/login");
  await check(tab, "the login");
  await page.getByLabel("Password").fill(PASSWORD);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByText("You are logged in.").waitFor();
  assert.equal(new URL(page.url()).pathname, "/settings/plan");
  await page.getByRole("button", { name: "Log out" }).click();
  await page.getByText("You are logged out.").waitFor();
  await page.goto("/");
  assert.equal(new URL(page.url()).pathname, "/login");
});

test("after five wrong passwords even the right one has to wait", async () => {
  const tab = await open(browser, bench.url);
  const { page } = tab;
  await page.goto("/login");
  for (let attempt = 0; attempt < 5; attempt += 1) {
    await page.getByLabel("Password").fill("wrong");
    await page.getByRole("button", { name: "Log in" }).click();
    await page.getByText("the password is wrong").waitFor();
  }
  await check(tab, "a wrong password");
  await page.getByLabel("Password").fill(PASSWORD);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByText("sent several wrong passwords").waitFor();
  await check(tab, "the wait after wrong passwords");
});

test("the choice of colours is kept", async () => {
  const loopback = await Bench.start();
  try {
    const { page } = await open(browser, loopback.url, { colorScheme: "light" });
    await logIn(page, PASSWORD);
    const ground = () => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    const light = await ground();
    await page.goto("/settings/about");
    await page.getByRole("button", { name: "dark" }).click();
    assert.equal(new URL(page.url()).pathname, "/settings/about");
    assert.notEqual(await ground(), light);
    await page.goto("/");
    assert.notEqual(await ground(), light);
    await page.getByRole("button", { name: "system" }).click();
    assert.equal(await ground(), light);
  } finally {
    await loopback.stop();
  }
});
