// Results of a made-up line, derived from a real one and put into the service by its API.
import assert from "node:assert/strict";

const DAY = 86_400_000;

/** An id of version 7 that begins with this time. */
function id(at, number) {
  const time = at.toString(16).padStart(12, "0");
  const tail = number.toString(16).padStart(12, "0");
  return `${time.slice(0, 8)}-${time.slice(8)}-7000-8000-${tail}`;
}

/** A direction with this rate, which the network limited. */
function direction(result, bps) {
  const { udp, line_rate_estimate, ...rest } = result;
  return { ...rest, goodput_bps: bps, limited_by: { cause: "network", evidence: [] } };
}

/** Puts `days` days of results into the service: at night 95 Mbit/s, in the evening 50 Mbit/s, against a public address. */
export async function putResults(bench, real, days) {
  const answer = await bench.command("token", "add", "--name", "browser", "--scope", "admin", "--json");
  const { token } = JSON.parse(answer);
  const midnight = Math.floor(Date.now() / DAY) * DAY;
  let number = 1;
  for (let day = 1; day <= days; day += 1) {
    for (const [hour, mbit] of [[2, 95], [3, 94], [20, 50], [21, 52]]) {
      const at = midnight - day * DAY + hour * 3_600_000;
      const document = {
        ...real,
        id: id(at, number),
        started_at: new Date(at).toISOString(),
        finished_at: new Date(at + 10_000).toISOString(),
        reflector: { ...real.reflector, address: "203.0.113.7:4000" },
        uplink: { interface: "eth0", public_prefix: "198.51.100.0/24" },
        download: direction(real.download, mbit * 1_000_000 + day * 1000),
        upload: direction(real.upload, 40_000_000),
        validity: { verdict: "valid" },
        warnings: [],
      };
      number += 1;
      const put = await fetch(`${bench.url}/api/v1/results/${document.id}`, {
        method: "PUT",
        headers: { authorization: `Bearer ${token}` },
        body: JSON.stringify(document),
      });
      assert.equal(put.status, 201, await put.text());
    }
  }
  return number - 1;
}
