// Pictures of the pages, from the data of crates/appliance/examples/seed.rs: the ones of the documentation with
// `--docs FOLDER`, and of every page in every size and colour with `--all FOLDER`.
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { VIEWS, launch, logIn, open } from "./lib/browser.mjs";
import { PATHS } from "./lib/paths.mjs";
import { Bench, PASSWORD } from "./lib/service.mjs";

/** The pictures of the documentation: file, path, size, colours. */
const DOCS = [
  { file: "now.png", path: "/", view: { width: 1280, height: 900 }, colorScheme: "light" },
  { file: "history.png", path: "/history?period=month", view: { width: 1280, height: 900 }, colorScheme: "light" },
  { file: "report.png", path: "/report/preview", view: { width: 1280, height: 900 }, colorScheme: "light" },
  { file: "now-phone.png", path: "/", view: { width: 390, height: 844 }, colorScheme: "dark" },
];

const [kind, folder] = process.argv.slice(2);
if (!["--docs", "--all"].includes(kind) || !folder) {
  console.error("usage: screenshots.mjs --docs|--all FOLDER");
  process.exit(2);
}
await mkdir(folder, { recursive: true });
const bench = await Bench.prepare();
const browser = await launch();
try {
  // A real reflector, so that the monitor of it measures.
  await bench.pair("attic");
  await bench.output(bench.spawnPath("seed", process.env.SEED, [bench.env.PACKETPARAMEDIC_STATE_DIR]));
  await bench.serve();
  if (kind === "--docs") {
    for (const { file, path, view, colorScheme } of DOCS) {
      const { page } = await open(browser, bench.url, { viewport: view, colorScheme });
      await page.goto(path);
      await page.screenshot({ path: join(folder, file), animations: "disabled" });
    }
  } else {
    for (const view of VIEWS) {
      const { page } = await open(browser, bench.url, view);
      await logIn(page, PASSWORD);
      const [{ id }] = await (await fetch(`${bench.url}/api/v1/results?limit=1`)).json();
      for (const path of [...PATHS, "/monitors/attic", "/report/preview", `/runs/${id}`]) {
        await page.goto(path);
        const name = `${view.name} ${path.replace(id, "latest")}`.replace(/[^a-z0-9]+/gi, "-");
        await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true, animations: "disabled" });
      }
    }
  }
} finally {
  await browser.close();
  await bench.stop();
}
