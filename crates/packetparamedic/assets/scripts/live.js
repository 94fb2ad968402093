// The progress of running tests on the first page, as the service reports it by server-sent events. The page has the numbers of the
// time at which it was made; from there on this script goes on. Without it the browser reads the page again.
(() => {
  const names = ["accepted", "waiting_for_device", "queued", "start", "phase", "interval", "latency", "ended"];
  const loads = {
    idle: "Measures the latency without load.",
    download: "Measures the download.",
    upload: "Measures the upload.",
    bidir: "Measures both directions at once.",
  };
  // What is known of each test, by its id.
  const runs = new Map();
  let source = null;
  let drawing = false;

  function card(id) {
    return document.querySelector(`[data-live="${CSS.escape(id)}"]`);
  }

  function run(id) {
    if (!runs.has(id)) {
      runs.set(id, { begin: null, phases: [], phase: null, times: [], download: [], upload: [], latency: [], plot: null });
    }
    return runs.get(id);
  }

  function say(element, selector, text) {
    const found = element?.querySelector(selector);
    if (found && found.textContent !== text) {
      found.textContent = text;
    }
  }

  // Reads the part of the page again that has the tests.
  function refresh() {
    return htmx.ajax("GET", "/", { target: "#now", select: "#now", swap: "outerMorph" });
  }

  function note(event) {
    const update = JSON.parse(event.data);
    const element = card(update.run);
    if (update.event === "ended" || !element) {
      if (update.event === "ended") {
        runs.get(update.run)?.plot?.destroy();
        runs.delete(update.run);
      }
      refresh();
      return;
    }
    const state = run(update.run);
    const at = Date.parse(update.at) / 1000;
    switch (update.event) {
      case "waiting_for_device":
        say(element, "[data-stage]", "Another test runs on this device; this one waits for its end.");
        break;
      case "queued":
        say(element, "[data-stage]", `Place ${update.place} in the queue of the reflector; about ${Math.round(update.expected_wait_ms / 1000)} s to wait.`);
        break;
      case "start":
        state.begin = at;
        state.phases = update.phases;
        break;
      case "phase":
        state.begin ??= at;
        state.phase = { load: update.phase, at, duration: update.duration_ms };
        say(element, "[data-stage]", loads[update.phase] ?? "Measures.");
        for (const direction of ["download", "upload"]) {
          say(element, `[data-${direction}]`, "–");
        }
        break;
      case "interval":
        say(element, `[data-${update.direction}]`, paramedic.rate(update.bps));
        point(state, at, update.direction, update.bps);
        break;
      case "latency":
        if (update.rtt_us !== undefined) {
          say(element, "[data-latency]", paramedic.micros(update.rtt_us));
          point(state, at, "latency", update.rtt_us / 1000);
        }
        break;
    }
    if (!drawing) {
      drawing = true;
      requestAnimationFrame(draw);
    }
  }

  // Adds a point of one series. Points of one moment share a place.
  function point(state, at, series, value) {
    const time = Math.round((at - (state.begin ??= at)) * 10) / 10;
    const last = state.times.length - 1;
    if (last < 0 || time > state.times[last]) {
      state.times.push(time);
      for (const name of ["download", "upload", "latency"]) {
        state[name].push(null);
      }
    }
    state[series][state.times.length - 1] = value;
  }

  function draw() {
    drawing = false;
    for (const [id, state] of runs) {
      const element = card(id);
      if (!element) {
        continue;
      }
      progress(element, state);
      if (state.times.length > 1) {
        plot(element, state);
      }
    }
  }

  function progress(element, state) {
    const bar = element.querySelector("[data-progress]");
    if (!bar) {
      return;
    }
    const all = state.phases.reduce((sum, phase) => sum + phase.duration_ms, 0);
    if (!state.phase || all === 0) {
      // The test began before this page listened: the bar goes on from the value that the page had.
      const latest = state.times.at(-1) ?? 0;
      state.shown ??= { value: bar.value, time: latest };
      bar.value = Math.min(state.shown.value + (latest - state.shown.time) * 1000, bar.max);
      return;
    }
    let before = 0;
    for (const phase of state.phases) {
      if (phase.phase === state.phase.load) {
        break;
      }
      before += phase.duration_ms;
    }
    const time = state.begin + state.times.at(-1) - state.phase.at;
    const within = Math.min(Math.max(time, 0) * 1000, state.phase.duration);
    bar.max = all;
    bar.value = before + (Number.isFinite(within) ? within : 0);
  }

  function plot(element, state) {
    const place = element.querySelector("[data-plot]");
    const data = [state.times, state.download, state.upload, state.latency];
    if (state.plot && place.contains(state.plot.root)) {
      state.plot.setData(data);
      return;
    }
    place.hidden = false;
    place.replaceChildren();
    const ink = paramedic.colour("--quiet");
    const line = paramedic.colour("--line");
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const series = (label, token, scale) => ({ label, stroke: paramedic.colour(token), width: 2, scale, spanGaps: true, points: { show: false } });
    state.plot = new uPlot({
      width: Math.max(place.clientWidth, 200),
      height: 200,
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false }, rate: { range: (_, low, high) => [0, Math.max(high * 1.05, 1)] }, ms: { range: (_, low, high) => [0, Math.max(high * 1.1, 1)] } },
      axes: [
        { ...axis, values: (_, values) => values.map((value) => `${value} s`) },
        { ...axis, scale: "rate", size: 84, values: (_, values) => values.map((value) => paramedic.rate(value)) },
        { ...axis, scale: "ms", side: 1, size: 60, grid: { show: false }, values: (_, values) => values.map((value) => `${value} ms`) },
      ],
      series: [{}, series("download", "--download", "rate"), series("upload", "--upload", "rate"), series("latency", "--latency", "ms")],
    }, data, place);
  }

  // Listens while the page has a running test: a page on a wall holds no connection for nothing.
  function watch() {
    const wanted = document.querySelector("[data-live]") !== null && document.visibilityState === "visible";
    if (wanted && !source) {
      source = new EventSource("/api/v1/events");
      for (const name of names) {
        source.addEventListener(name, note);
      }
      // What happened while no connection was open: a test may have ended since the page was made.
      source.addEventListener("open", refresh);
      source.addEventListener("error", () => setTimeout(refresh, 3000));
    } else if (!wanted && source) {
      source.close();
      source = null;
    }
  }

  function rebuild() {
    for (const state of runs.values()) {
      state.plot?.destroy();
      state.plot = null;
    }
    draw();
  }

  if (document.querySelector("#now")) {
    watch();
    document.addEventListener("visibilitychange", watch);
    document.addEventListener("htmx:after:swap", () => {
      watch();
      rebuild();
    });
    // While the events tell all, the page need not be read again.
    document.addEventListener("htmx:before:request", (event) => {
      if (source && event.target.id === "now" && event.detail.ctx?.sourceElement === event.target) {
        event.preventDefault();
      }
    });
    const stale = (is) => document.querySelector("#stale")?.toggleAttribute("hidden", !is);
    document.addEventListener("htmx:error", () => stale(true));
    document.addEventListener("htmx:response:error", () => stale(true));
    document.addEventListener("htmx:after:swap", () => stale(false));
    paramedic.onThemeChange(rebuild);
    addEventListener("resize", rebuild);
  }
})();
