// Chromium, its pages in the sizes and colours that count, and what is checked on every page.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const require = createRequire(import.meta.url);
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");

/** A phone and a desk, light and dark; a wall. */
export const VIEWS = [
  { name: "390 light", viewport: { width: 390, height: 844 }, colorScheme: "light" },
  { name: "390 dark", viewport: { width: 390, height: 844 }, colorScheme: "dark" },
  { name: "1280 light", viewport: { width: 1280, height: 900 }, colorScheme: "light" },
  { name: "1280 dark", viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  { name: "1920 dark", viewport: { width: 1920, height: 1080 }, colorScheme: "dark" },
];

/** Starts the browser. */
export function launch() {
  // Chromium has no sandbox for root.
  const args = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args });
}

/** A page that collects what it must not do: violations of its policy, errors, requests to other hosts. */
export async function open(browser, url, options = {}) {
  const context = await browser.newContext({ baseURL: url, timezoneId: "Europe/Berlin", locale: "en-GB", ...options });
  context.setDefaultTimeout(20_000);
  const faults = [];
  await context.addInitScript(() => {
    globalThis.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => {
      globalThis.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile}`);
    });
  });
  const page = await context.newPage();
  page.on("pageerror", (error) => faults.push(`error: ${error.message}`));
  page.on("console", (message) => {
    // A refused form is an answer with a status, which Chromium reports as an error.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) {
      faults.push(`console: ${message.text()}`);
    }
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url)) {
      faults.push(`request: ${request.url()}`);
    }
  });
  return { page, context, faults };
}

/** Logs in on the page of the login. */
export async function logIn(page, password) {
  await page.goto("/login");
  await page.getByLabel("Password").fill(password);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByText("You are logged in.").waitFor();
}

/** Checks what holds on every page. */
export async function check({ page, faults }, what) {
  const violations = await page.evaluate(() => globalThis.violations ?? []);
  assert.deepEqual(violations, [], `${what}: violations of the policy`);
  assert.deepEqual(faults, [], `${what}: faults`);
  const width = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(width <= 0, `${what}: ${width} pixels wider than the window`);
  // Not by a script element, which the policy of the page forbids.
  await page.evaluate(axe);
  const { violations: findings } = await page.evaluate(() => globalThis.axe.run());
  const serious = findings.filter((finding) => ["serious", "critical"].includes(finding.impact));
  const shown = serious.map((finding) => `${finding.id}: ${finding.help}: ${finding.nodes.map((node) => node.html).join(" | ")}`);
  assert.deepEqual(shown, [], `${what}: axe`);
}
