// How long the pages of a service with many results take, and its metrics: the server's time of each, without a browser.
// page_times.mjs COUNT REQUESTS
import { performance } from "node:perf_hooks";
import { PATHS } from "./lib/paths.mjs";
import { Bench } from "./lib/service.mjs";

const [count, requests] = process.argv.slice(2).map(Number);
const bench = await Bench.prepare();
try {
  const began = performance.now();
  await bench.output(bench.spawnPath("seed", process.env.SEED, [bench.env.PACKETPARAMEDIC_STATE_DIR, "--many", String(count)]));
  console.log(`${count} results seeded in ${Math.round((performance.now() - began) / 1000)} s`);
  await bench.serve();
  const headers = { accept: "text/html", "accept-encoding": "gzip" };
  for (const path of [...PATHS, "/metrics"]) {
    const times = [];
    // The first request fills caches that a running service has.
    for (let request = 0; request <= requests; request += 1) {
      const start = performance.now();
      const answer = await fetch(bench.url + path, { headers, redirect: "manual" });
      await answer.arrayBuffer();
      if (request > 0) {
        times.push(performance.now() - start);
      }
    }
    times.sort((a, b) => a - b);
    const at = (share) => times[Math.min(times.length - 1, Math.floor(times.length * share))].toFixed(1);
    console.log(`${path.padEnd(28)} p50 ${at(0.5)} ms   p95 ${at(0.95)} ms`);
  }
} finally {
  await bench.stop();
}
