"use strict";
// What a page shows of each chart is data; how it looks is told here, in Vega-Lite's terms, and in the style sheet.

const colour = (name) => `var(--${name})`;
const soft = { fontSize: 12, color: colour("soft") };
const shown = [{ filter: "indexof(hidden, datum.s) < 0" }];
const quantity = (field, more) => ({ field, type: "quantitative", ...more });
const withUnit = (unit) => (unit ? { labelExpr: `datum.label && datum.label + '${unit}'` } : {});
const rounded = (value, unit) =>
  (unit ? value.toFixed(2) : value.toLocaleString("en-US", { maximumSignificantDigits: 5 })).replace("-", "−");
const escaped = (title) => title.replaceAll("\\", "\\\\"); // Vega-Lite puts a tooltip's titles in quotes as they are

const config = {
  background: null,
  font: getComputedStyle(document.body).fontFamily,
  padding: { left: 0, right: 6, top: 2, bottom: 0 },
  view: { stroke: null },
  axis: {
    labelColor: colour("soft"), titleColor: colour("soft"), gridColor: colour("line"), domainColor: colour("line"),
    tickColor: colour("line"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelPadding: 5,
  },
};

function level(c, channel) {
  if (!c.level) return [];
  const [value, text] = c.level;
  return [{
    data: { values: [{ [channel]: value, t: text, s: "level" }] },
    transform: shown,
    mark: { type: "rule", color: colour("c1"), strokeWidth: 1.5, strokeDash: [6, 4] },
    encoding: { [channel]: quantity(channel), tooltip: { field: "t" } },
  }];
}

function bands(c) {
  if (!c.bands.length) return [];
  const values = c.bands.map(([a, b, name], n) => ({ x: a, b, name, odd: n % 2 }));
  const x = quantity("x");
  // names that have no room beside each other stand upright
  const [low, high] = c.x.domain;
  const narrow = `width * ${Math.min(...c.bands.map(([a, b]) => (b - a) / (high - low)))}`;
  const fits = `${narrow} > ${7 * Math.max(...c.bands.map(([, , name]) => Math.min(name.length, 30))) + 8}`;
  const text = (more, when) => ({
    data: { values },
    mark: { type: "text", align: "left", opacity: { expr: when }, ...more, ...soft },
    encoding: { x, y: { value: more.y }, text: { field: "name" } },
  });
  return [
    {
      data: { values: values.filter((band) => band.odd) },
      mark: { type: "rect", fill: colour("sunk"), opacity: 0.8 },
      encoding: { x, x2: { field: "b" } },
    },
    { data: { values: values.slice(1) }, mark: { type: "rule", color: colour("line") }, encoding: { x } },
    text({ baseline: "bottom", dx: 4, y: -5, limit: 210 }, `${fits} ? 1 : 0`),
    text({ baseline: "bottom", angle: 90, dx: 4, dy: -3, y: 0, limit: c.height - 8 }, `${fits} || ${narrow} < 14 || ${c.height} < 180 ? 0 : 1`),
  ];
}

function ticks({ ticks, domain: [low, high], whole }) {
  if (ticks) {
    const [values, labels] = [ticks.map(([at]) => at), ticks.map(([, label]) => label)];
    return { values, labelExpr: `${JSON.stringify(labels)}[indexof(${JSON.stringify(values)}, datum.value)]` };
  }
  if (!whole || high - low >= 10) return {};
  return { values: Array.from({ length: high - low + 1 }, (_, n) => Math.ceil(low) + n), format: "d" };
}

// The place nearest to the pointer, and the values of all lines there.
function pointed(c, x, text) {
  const rows = [...c.rows].sort((a, b) => a.x - b.x);
  const middle = (a, b) => (c.x.log ? Math.sqrt(a.x * b.x) : (a.x + b.x) / 2);
  const values = rows.map((row, k) => ({
    x: row.x,
    a: k ? middle(rows[k - 1], row) : c.x.domain[0],
    b: k + 1 < rows.length ? middle(row, rows[k + 1]) : c.x.domain[1],
    t: row.t ?? rounded(row.x, ""),
    ...Object.fromEntries(c.series.map((_, n) => [`t${n}`, text(row, n)])),
  }));
  const opacity = { condition: { param: "pointer", value: 0.6, empty: false }, value: 0 };
  return [
    { data: { values }, mark: { type: "rule", color: colour("soft") }, encoding: { x, opacity } },
    {
      data: { values },
      params: [{ name: "pointer", select: { type: "point", fields: ["x"], on: "pointerover" } }],
      mark: { type: "rect", opacity: 0 },
      encoding: {
        x: { ...x, field: "a" },
        x2: { field: "b" },
        tooltip: [
          { field: "t", title: escaped(c.x.point) },
          ...c.series.map((line, n) => ({ field: `t${n}`, title: escaped(line.label) })),
        ],
      },
    },
  ];
}

function lines(c) {
  const x = quantity("x", {
    scale: { ...(c.x.log ? { type: "log" } : { zero: false }), domain: c.x.domain, nice: false },
    axis: { title: c.x.title, titleAnchor: "end", grid: false, labelOverlap: true, labelFlush: false, ...ticks(c.x) },
  });
  const labelled = { condition: { test: "datum.label", value: 1 }, value: 0 }; // of a log axis, which has many more
  const ends = c.range ? { domainMin: c.range[0], domainMax: c.range[1] } : {};
  const y = quantity("y", {
    scale: { ...(c.log ? { type: "log" } : { zero: c.zero }), nice: true, ...ends },
    axis: { title: null, tickCount: c.height / 50, gridOpacity: labelled, tickOpacity: labelled, ...withUnit(c.unit) },
  });
  const names = c.series.map((_, n) => `s${n}`);
  const by = (range) => ({ field: "s", type: "nominal", legend: null, scale: { domain: names, range } });
  const color = by(c.series.map((line) => colour(line.colour)));
  const strokeDash = by(c.series.map((line) => (line.dashed ? [5, 4] : [1, 0])));
  const text = (row, n) => {
    const [value, half] = [row[`s${n}`], row[`h${n}`]];
    return value == null ? "—" : rounded(value, c.unit) + (half == null ? "" : ` ± ${rounded(half, c.unit)}`) + c.unit;
  };
  const values = c.rows.flatMap((row) => c.series.flatMap((line, n) => {
    const [value, half] = [row[`s${n}`], row[`h${n}`]];
    if (value == null) return [];
    const t = `${line.label}${row.t ? `, ${row.t}` : ""}: ${text(row, n)}`;
    return { s: `s${n}`, g: row.g, x: row.x, y: value, a: value - half, b: value + half, dot: line.marks, t };
  }));
  const together = c.series.length === 1 || c.rows.some((row) => names.filter((name) => row[name] != null).length > 1);
  const ring = { type: "point", size: 90, strokeWidth: 2.5, fill: colour("panel"), stroke: colour(c.series[0].colour), opacity: 1 };
  const layer = [
    ...bands(c),
    ...level(c, "y"),
    {
      transform: shown,
      mark: { type: "line", strokeWidth: 2, strokeJoin: "round", clip: true, interpolate: c.steps ? "step-after" : "linear" },
      encoding: { x, y, color, strokeDash, detail: { field: "g" } },
    },
    {
      transform: [{ filter: "isValid(datum.a)" }, ...shown],
      mark: { type: "rule", strokeWidth: 2 },
      encoding: { x, y: { ...y, field: "a" }, y2: { field: "b" }, color },
    },
    {
      transform: [{ filter: "datum.dot" }, ...shown],
      mark: { type: "point", filled: true, opacity: 1, size: 50 },
      encoding: { x, y, color, tooltip: { field: "t" } },
    },
    ...(together ? pointed(c, x, text) : []),
    {
      data: { values: c.best.map(([at, value, label]) => ({ x: at, y: value, t: label, s: "s0" })) },
      transform: shown,
      mark: ring,
      encoding: { x, y, tooltip: { field: "t" } },
    },
  ];
  return {
    spec: { height: c.height, data: { values }, layer },
    table: [[c.x.point, ...c.series.map((line) => line.label)], ...c.rows.map((r) => [r.t ?? r.x, ...names.map((s) => r[s])])],
  };
}

function strips(c) {
  const values = c.rows.map((row) => ({ ...row, c: colour(row.colour) }));
  const dots = c.rows.flatMap((row) => row.dots.map(([x, t]) => ({ label: row.label, c: colour(row.colour), x, t })));
  const y = { field: "label", type: "nominal", sort: null, axis: null, scale: { padding: 0 } };
  const x = (field) => quantity(field, {
    scale: { zero: false, nice: true, padding: 8 },
    axis: { title: null, tickCount: 4, ...withUnit(c.unit) },
  });
  const color = { field: "c", scale: null };
  const tooltip = (field, title) => [{ field: "label", title: "setting" }, { field, title }];
  const name = { type: "text", baseline: "top", dy: -22, fontSize: 13 };
  const room = { expr: "width - 120" };
  const layer = [
    { mark: { type: "rule", color: colour("line") }, encoding: { y } },
    ...level(c, "x"),
    {
      mark: { type: "rule", strokeWidth: 8, opacity: 0.28 },
      encoding: { y, x: x("low"), x2: { field: "high" }, color, tooltip: tooltip("text", "mean") },
    },
    {
      data: { values: dots },
      mark: { type: "circle", size: 70, opacity: 0.75 },
      encoding: { y, x: x("x"), color, tooltip: tooltip("t", "run") },
    },
    {
      mark: { type: "tick", thickness: 2.5, size: 20 },
      encoding: { y, x: x("mean"), color, tooltip: tooltip("text", "mean") },
    },
    {
      mark: { ...name, align: "left", fontWeight: 600, color: colour("text"), limit: room },
      encoding: { y, x: { value: 0 }, text: { field: "label" }, tooltip: { field: "label" } },
    },
    {
      mark: { ...name, align: "right", color: colour("soft") },
      encoding: { y, x: { value: "width" }, text: { field: "text" } },
    },
  ];
  return {
    spec: { height: 48 * c.rows.length, data: { values }, layer },
    table: [["setting", "mean"], ...c.rows.map((row) => [row.label, row.text])],
  };
}

function bars(c) {
  const values = c.rows.map((row, n) => ({
    ...row, n, ...Object.fromEntries(row.bars.flatMap(([v, name], k) => [[`v${k}`, v], [`c${k}`, colour(name)]])),
  }));
  const kinds = c.rows[0].bars.map((_, k) => k);
  const width = 7 * Math.max(...c.rows.map((row) => row.text.length)) + 8;
  const room = width + (c.rows.some((row) => row.figure) ? 52 : 0);
  const labels = JSON.stringify(c.rows.map((row) => row.name));
  const y = {
    field: "n",
    type: "ordinal",
    axis: { title: null, ticks: false, domain: false, labelLimit: 140, labelExpr: `${labels}[datum.value]` },
  };
  const scale = { domain: c.ends, clamp: true, range: [0, { expr: `width - ${room}` }], nice: false, zero: false };
  const x = (field) => quantity(field, { axis: null, scale });
  const written = { type: "text", align: "right", ...soft };
  const tooltip = [{ field: "name", title: "name" }, { field: "text", title: "value" }];
  const layer = [
    ...kinds.map((k) => ({
      mark: { type: "bar", height: 14 - 7 * k, cornerRadius: 1 },
      encoding: { y, x: x(`v${k}`), x2: { datum: 0 }, color: { field: `c${k}`, scale: null }, tooltip },
    })),
    {
      data: { values: [{ zero: 0 }] },
      mark: { type: "rule", color: colour("soft") },
      encoding: { x: x("zero") },
    },
    { mark: written, encoding: { y, x: { value: "width" }, text: { field: "text" } } },
    {
      mark: { ...written, fontWeight: 600, dx: -width },
      encoding: { y, x: { value: "width" }, text: { field: "figure" }, color: { field: `c${kinds.at(-1)}`, scale: null } },
    },
  ];
  return {
    spec: { height: 20 * c.rows.length, data: { values }, layer },
    table: [["name", "change", "value"], ...c.rows.map((row) => [row.name, row.figure, row.text])],
  };
}

function heatmap(c) {
  const size = c.names.length;
  const values = c.values.flatMap((row, i) => row.flatMap((v, j) => (v == null ? [] : {
    i, j, i2: i + 1, j2: j + 1, middle: i + 0.5, across: j + 0.5, v,
    row: c.names[i], column: c.names[j], t: c.texts ? c.texts[i][j] : rounded(v, " "),
    c: colour(c.truth && i !== j ? "c1" : "c0"),
  })));
  const written = c.texts && size <= 20;
  const axis = {
    title: null, ticks: false, domain: false, grid: false, labelOverlap: true, labelLimit: 90,
    values: c.names.map((_, n) => n + 0.5), labelExpr: `${JSON.stringify(c.names)}[floor(datum.value)]`,
  };
  const turned = c.names.some((name) => name.length > 3) ? -90 : 0;
  const scale = { domain: [0, size], nice: false, zero: false };
  const x = (field) => quantity(field, { scale, axis: written ? { ...axis, orient: "top", labelAngle: turned } : null });
  const y = (field) => quantity(field, { scale: { ...scale, reverse: true }, axis });
  const tooltip = ["row", "column", "t"].map((field, n) => ({ field, title: c.called[n] }));
  const shades = { domain: c.bounds, range: [0, 1], clamp: true, ...(c.truth ? { type: "sqrt" } : {}) }; // few are seen
  const fillOpacity = quantity("v", { scale: shades, legend: null });
  const layer = [{
    mark: { type: "rect", stroke: colour("panel"), strokeWidth: written ? 2 : 0 },
    encoding: { x: x("j"), x2: { field: "j2" }, y: y("i"), y2: { field: "i2" }, fill: { field: "c", scale: null }, fillOpacity, tooltip },
  }];
  if (c.between.length) {
    const data = { values: c.between.map((n) => ({ i: n, j: n })) };
    const mark = { type: "rule", color: colour("panel"), strokeWidth: 1.5 };
    layer.push({ data, mark, encoding: { x: x("j") } }, { data, mark, encoding: { y: y("i") } });
  }
  if (written) {
    const letter = `width / ${size * 0.62 * Math.max(2, ...c.texts.flat().map((text) => text.length))}`; // its pixels
    const half = c.truth ? 0.36 : (c.bounds[0] + c.bounds[1]) / 2 + 0.05; // from here on a cell is dark
    const strong = { test: `datum.v > ${half}`, value: colour("on-strong") };
    layer.push({
      mark: { type: "text", fontSize: { expr: `min(12, ${letter})` }, opacity: { expr: `${letter} < 7 ? 0 : 1` } },
      encoding: { x: x("across"), y: y("middle"), text: { field: "t" }, color: { condition: strong, value: colour("text") }, tooltip },
    });
  }
  return {
    spec: { height: "container", data: { values }, view: { fill: colour("sunk") }, layer },
    table: [[c.called[0], c.called[2]], ...c.values.map((row, i) => [c.names[i], (c.texts ?? c.values)[i].join(", ")])],
  };
}

async function draw(figure) {
  const place = figure.querySelector(".plot");
  // Vega's expressions take no line separators in a string
  const chart = JSON.parse(figure.querySelector("script").textContent.replace(/[\u2028\u2029]/g, " "));
  const { spec, table } = { lines, strips, bars, heatmap }[chart.kind](chart);
  const autosize = { type: spec.height === "container" ? "fit" : "fit-x", contains: "padding" };
  const params = [{ name: "hidden", value: [] }];
  const tooltip = { disableDefaultStyle: true, theme: "page" };
  try {
    const { view } = await vegaEmbed(
      place, { description: chart.title, width: "container", autosize, params, ...spec },
      { renderer: "svg", actions: false, ast: true, config, defaultStyle: false, logLevel: 1, tooltip },
    );
    switches(figure, view);
  } catch {
    list(figure, place, table);
  }
}

// The legend's entries switch their lines off and on; with the last one off, all are on again.
function switches(figure, view) {
  const keys = [...figure.querySelectorAll("button[data-line]")];
  const off = (key) => key.getAttribute("aria-pressed") === "false";
  for (const key of keys) {
    key.addEventListener("click", () => {
      key.setAttribute("aria-pressed", off(key));
      if (keys.every(off)) keys.forEach((key) => key.setAttribute("aria-pressed", true));
      view.signal("hidden", keys.filter(off).map((key) => key.dataset.line)).runAsync();
    });
  }
}

// A chart that cannot be drawn, as without the library, is a table of what it would show.
function list(figure, place, rows) {
  const table = document.createElement("table");
  rows.forEach((cells, n) => {
    const row = table.insertRow();
    for (const cell of cells) row.appendChild(document.createElement(n ? "td" : "th")).textContent = cell ?? "—";
  });
  place.replaceChildren(table);
  figure.classList.add("listed");
  document.getElementById("undrawn")?.removeAttribute("hidden");
}

// What is folded away has no width yet, and is drawn once it is opened.
for (const figure of document.querySelectorAll("figure.chart")) {
  const folded = figure.closest("details:not([open])");
  if (folded) folded.addEventListener("toggle", () => draw(figure), { once: true });
  else draw(figure);
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const code = document.getElementById(button.dataset.copy);
  let done = false;
  try {
    await navigator.clipboard.writeText(code.textContent);
    done = true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(code);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    done = document.execCommand("copy");
  }
  button.textContent = done ? "Copied" : "Selected";
  setTimeout(() => { button.textContent = "Copy"; }, 1600);
});
