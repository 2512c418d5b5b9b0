"use strict";
const style = {
  background: null,
  font: getComputedStyle(document.body).fontFamily,
  padding: { left: 0, right: 6, top: 2, bottom: 0 },
  view: { stroke: null },
  axis: {
    labelColor: "var(--soft)", titleColor: "var(--soft)", gridColor: "var(--line)", domainColor: "var(--line)",
    tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelPadding: 5,
  },
};

async function draw(figure) {
  const place = figure.querySelector(".plot");
  const spec = JSON.parse(figure.querySelector("script").textContent);
  try {
    const { view } = await vegaEmbed(place, spec, {
      renderer: "svg", actions: false, ast: true, config: style, defaultStyle: false, logLevel: 1,
      tooltip: { disableDefaultStyle: true, theme: "page" },
    });
    switches(figure, view);
  } catch {
    list(figure, place, spec);
  }
}

// The legend's entries switch their lines off and on; with the last one off, all are on again.
function switches(figure, view) {
  const keys = [...figure.querySelectorAll("button[data-line]")];
  const off = (key) => key.getAttribute("aria-pressed") === "false";
  for (const key of keys) {
    key.addEventListener("click", () => {
      key.setAttribute("aria-pressed", off(key));
      if (keys.every(off)) keys.forEach((one) => one.setAttribute("aria-pressed", true));
      view.signal("hidden", keys.filter(off).map((one) => one.dataset.line)).runAsync();
    });
  }
}

// A chart that cannot be drawn, as without the library, is a table of what it would show.
function list(figure, place, spec) {
  const columns = Object.entries(spec.usermeta.columns);
  const table = document.createElement("table");
  const add = (cells, tag) => {
    const row = table.insertRow();
    for (const cell of cells) row.appendChild(document.createElement(tag)).textContent = cell ?? "—";
  };
  add(columns.map(([, name]) => name), "th");
  for (const row of spec.data.values) add(columns.map(([key]) => row[key]), "td");
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
