// The charts of history, runs and monitors. Each is drawn from the table beside it, so that both show the same values.
"use strict";

const paramedicCharts = (() => {
  const drawn = new Map();

  const units = {
    bps: paramedic.rate,
    us: paramedic.micros,
    share: (share) => `${Number((share * 100).toFixed(share < 0.01 ? 2 : 1))} %`,
    count: (number) => `${number}`,
  };

  // The token's colour with this strength in percent.
  function faint(colour, percent) {
    const parts = colour.match(/[\d.]+/g) || ["128", "128", "128"];
    return `rgba(${parts.slice(0, 3).join(", ")}, ${percent / 100})`;
  }

  // The steps between the labels of a time axis, in seconds: minutes, hours, days, weeks, and some of them.
  const TIME_STEPS = [
    ...[1, 5, 15, 30].map((minutes) => minutes * 60),
    ...[1, 2, 3, 6, 12].map((hours) => hours * 3600),
    ...[1, 2, 7, 14, 28, 56, 112, 365, 730].map((days) => days * 86400),
  ];

  // Labels of a time axis: the clock within a day and a half, else the day.
  function timeLabels(from, to) {
    const span = to - from;
    const form = span <= 36 * 3600 ? { timeStyle: "short" }
      : span <= 14 * 86400 ? { weekday: "short", day: "numeric" }
      : span <= 400 * 86400 ? { day: "numeric", month: "short" }
      : { month: "short", year: "numeric" };
    const format = new Intl.DateTimeFormat(undefined, form);
    return (_, splits) => splits.map((second) => format.format(new Date(second * 1000)));
  }

  // The values of a table: a list of positions, and a list for each column that is drawn.
  function read(table) {
    const heads = [...table.tHead.rows[0].cells].slice(1);
    const rows = [...table.tBodies[0].rows];
    const columns = heads.map((head, at) => ({
      name: head.textContent.trim(),
      form: head.dataset.form,
      colour: head.dataset.colour,
      band: head.dataset.band,
      values: rows.map((row) => (row.cells[at + 1].dataset.v === undefined ? null : Number(row.cells[at + 1].dataset.v))),
    }));
    return { at: rows.map((row) => Number(row.dataset.x)), columns };
  }

  // Times in which a line is interrupted: a step without values has no row, and must not be bridged.
  function withGaps(data) {
    const steps = data.at.slice(1).map((at, index) => at - data.at[index]).filter((step) => step > 0);
    const usual = Math.min(...steps);
    const at = [];
    const values = data.columns.map(() => []);
    data.at.forEach((position, index) => {
      const before = data.at[index - 1];
      if (index > 0 && position - before > usual * 8) {
        at.push(before + usual);
        values.forEach((column) => column.push(null));
      }
      at.push(position);
      values.forEach((column, number) => column.push(data.columns[number].values[index]));
    });
    return { at, columns: data.columns.map((column, number) => ({ ...column, values: values[number] })) };
  }

  // The times of a list in the page: outages, or alerts.
  function times(name) {
    return [...document.querySelectorAll(`[data-${name}-from]`)].map((element) => {
      const [from, to] = ["from", "to"].map((end) => element.getAttribute(`data-${name}-${end}`));
      return { from: Number(from), to: to === "" ? Date.now() / 1000 : Number(to) };
    });
  }

  // Alerts are a line along the top, outages the whole height.
  function timesPlugin(name, colour) {
    const draw = (plot) => {
      const { left, top, width } = plot.bbox;
      const height = name === "alert" ? Math.round(plot.bbox.height / 30) + 2 : plot.bbox.height;
      plot.ctx.save();
      plot.ctx.fillStyle = name === "alert" ? colour : faint(colour, 22);
      for (const { from, to } of times(name)) {
        const begin = Math.max(plot.valToPos(from, "x", true), left);
        const end = Math.min(plot.valToPos(to, "x", true), left + width);
        // A short one is still seen.
        if (begin <= left + width && end >= left) plot.ctx.fillRect(begin, top, Math.max(end - begin, 2), height);
      }
      plot.ctx.restore();
    };
    return { hooks: { drawClear: draw } };
  }

  function series(column) {
    const colour = column.colour ? paramedic.colour(column.colour) : paramedic.colour("--ink");
    const base = { label: column.name, stroke: colour, width: 2, points: { size: 5 } };
    switch (column.form) {
      case "line": return base;
      case "dashes": return { ...base, dash: [6, 4] };
      case "bars": return { ...base, width: 0, fill: faint(colour, 75), paths: uPlot.paths.bars({ size: [0.8, 24] }), points: { show: false } };
      default: return { ...base, stroke: faint(colour, 45), width: 1, points: { show: false } };
    }
  }

  function options(element, shown, size) {
    const ink = paramedic.colour("--quiet");
    const grid = { stroke: paramedic.colour("--line"), width: 1 };
    const [from, to] = [Number(element.dataset.from), Number(element.dataset.to)];
    const isTime = element.dataset.axis === "time";
    const text = units[element.dataset.unit];
    const value = (number) => (number === null || number === undefined ? "–" : text(number));
    const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
    const position = (second) => (isTime ? full.format(new Date(second * 1000)) : `${second.toFixed(1)} s`);
    const bands = shown.flatMap((column, at) => {
      if (!column.band) return [];
      const [other, percent] = column.band.split(" ").map(Number);
      const below = shown.findIndex((own) => own.index === other);
      return below < 0 ? [] : [{ series: [at + 1, below + 1], fill: faint(paramedic.colour(column.colour), percent) }];
    });
    return {
      ...size,
      legend: { live: true },
      cursor: { drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        x: { time: false, range: [from, to] },
        y: { range: (_, low, high) => [0, high > 0 ? high * 1.05 : 1] },
      },
      axes: [
        { stroke: ink, grid, ticks: grid, ...(isTime ? { incrs: TIME_STEPS } : {}), values: isTime ? timeLabels(from, to) : (_, all) => all.map((second) => `${second} s`), space: 70 },
        { stroke: ink, grid, ticks: grid, values: (_, all) => all.map(value), size: 82 },
      ],
      series: [
        { label: isTime ? "Time" : "Second", value: (_, second) => (second === null || second === undefined ? "–" : position(second)) },
        ...shown.map((column) => ({ ...series(column), value: (_, number) => value(number) })),
      ],
      bands,
      plugins: isTime ? [timesPlugin("outage", paramedic.colour("--bad")), timesPlugin("alert", paramedic.colour("--fair"))] : [],
    };
  }

  function size(element) {
    return { width: Math.max(element.clientWidth, 240), height: Math.round(Math.min(Math.max(element.clientWidth * 0.32, 200), 420)) };
  }

  function draw(element) {
    const table = document.getElementById(element.dataset.chart);
    if (!table) return;
    drawn.get(element)?.destroy();
    element.replaceChildren();
    const data = withGaps(read(table));
    const shown = data.columns.map((column, index) => ({ ...column, index })).filter((column) => column.form !== "none");
    drawn.set(element, new uPlot(options(element, shown, size(element)), [data.at, ...shown.map((column) => column.values)], element));
  }

  function drawAll() {
    for (const element of [...drawn.keys()].filter((element) => !element.isConnected)) {
      drawn.get(element).destroy();
      drawn.delete(element);
    }
    document.querySelectorAll("[data-chart]").forEach(draw);
  }

  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const plot = drawn.get(target);
      if (plot && plot.width !== size(target).width) plot.setSize(size(target));
    }
  });

  function start() {
    drawAll();
    document.querySelectorAll("[data-chart]").forEach((element) => resized.observe(element));
  }

  return { start, drawAll };
})();

paramedicCharts.start();
paramedic.onThemeChange(paramedicCharts.drawAll);
document.addEventListener("htmx:after:swap", paramedicCharts.start);
