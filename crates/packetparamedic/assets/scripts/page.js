// What every page does: times in the viewer's zone, the colours of charts. No script is needed to read a page.
"use strict";

const paramedic = (() => {
  const forms = {
    full: { dateStyle: "medium", timeStyle: "short" },
    clock: { timeStyle: "short" },
    day: { dateStyle: "medium" },
  };

  // Shows the times below `root` in the viewer's zone, those of today without the day. The server wrote them in UTC, which stays
  // in their title.
  function localTimes(root) {
    for (const element of root.querySelectorAll("time[datetime][data-form]")) {
      const at = new Date(element.dateTime);
      if (!Number.isNaN(at.getTime())) {
        const isToday = at.toDateString() === new Date().toDateString();
        const form = isToday && element.dataset.form === "full" ? forms.clock : forms[element.dataset.form];
        element.textContent = new Intl.DateTimeFormat(undefined, form).format(at);
      }
    }
  }

  // The colour of a token such as "--ink", as the current theme has it. A chart draws on a canvas, which knows no tokens.
  function colour(token) {
    const probe = document.createElement("span");
    probe.style.color = `var(${token})`;
    probe.hidden = true;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  // Calls `draw` when the colours change.
  function onThemeChange(draw) {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }

  // A rate for people, as the server prints it: three digits, decimal units.
  function rate(bps) {
    const units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    let unit = 0;
    while (bps >= 999.5 && unit + 1 < units.length) {
      bps /= 1000;
      unit += 1;
    }
    const digits = unit === 0 || bps >= 99.95 ? 0 : bps >= 9.995 ? 1 : 2;
    return `${bps.toFixed(digits)} ${units[unit]}`;
  }

  // A time in microseconds for people.
  function micros(us) {
    const units = ["µs", "ms", "s"];
    let unit = 0;
    while (us >= 999.5 && unit + 1 < units.length) {
      us /= 1000;
      unit += 1;
    }
    const digits = unit === 0 || us >= 99.95 ? 0 : us >= 9.995 ? 1 : 2;
    return `${us.toFixed(digits)} ${units[unit]}`;
  }

  return { localTimes, colour, onThemeChange, rate, micros };
})();

paramedic.localTimes(document);
document.addEventListener("htmx:after:swap", () => paramedic.localTimes(document));
