// Filters and sorting of the page. The name of a curve lists the numbers of its rows; a line of chance for one evaluation set has the
// number of that set as tag.
"use strict";
const all = (query) => [...document.querySelectorAll(query)];
const search = document.getElementById("search"), evalSet = document.getElementById("eval-set");
const keys = all(".key"), rows = all("#table tbody tr"), families = all(".family");

function shown(row) {
  const wanted = families.filter((box) => box.checked).map((box) => box.value);
  const words = search.value.toLowerCase().split(/\s+/);
  const text = (row.textContent + " " + row.title).toLowerCase();
  return row.dataset.families.split(" ").some((each) => wanted.includes(each)) && words.every((word) => text.includes(word));
}

function update() {
  const visible = new Map();
  for (const row of rows) {
    const key = keys[Number(row.dataset.row)], chosen = shown(row);
    row.hidden = !chosen;
    key.hidden = !chosen;
    visible.set(row.dataset.row, chosen && key.getAttribute("aria-pressed") === "true");
  }
  for (const page of window.Bokeh ? Bokeh.documents : []) {
    for (const figure of page.roots()) {
      for (const curve of [...(figure.renderers ?? []), ...(figure.center ?? [])]) {
        if (curve.name) {
          curve.visible = curve.name.split(" ").some((row) => visible.get(row));
          choose(curve.glyph, curve.data_source.data);
        } else if (curve.tags?.length) {
          curve.visible = curve.tags[0] === evalSet.value;
        }
      }
    }
  }
}

// In the state-size figure, whose data has the columns y0, y1 ..., one for each evaluation set.
function choose(glyph, data) {
  if (!("y1" in data)) return;
  const chosen = evalSet.value, field = (name) => ({ field: name + chosen });
  if (glyph.type === "Segment") glyph.setv({ y0: field("low"), y1: field("high") });
  else glyph.y = field("y");
}

function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.sort === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.sort);
}

function sort(header) {
  const column = header.cellIndex, ascending = header.getAttribute("aria-sort") !== "ascending", body = rows[0]?.parentNode;
  all("#table th").forEach((each) => each.setAttribute("aria-sort", "none"));
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const empty = (each) => each === "" || Number.isNaN(each);
  const order = [...rows].sort((one, other) => {
    const a = value(one, column), b = value(other, column);
    if (empty(a) || empty(b)) return empty(a) - empty(b);  // rows without a number stay at the end
    return (a < b ? -1 : a > b ? 1 : 0) * (ascending ? 1 : -1);
  });
  order.forEach((row) => body.append(row));
}

all("#table th button").forEach((button) => button.addEventListener("click", () => sort(button.parentNode)));
keys.forEach((key) => key.addEventListener("click", () => {
  key.setAttribute("aria-pressed", String(key.getAttribute("aria-pressed") !== "true"));
  update();
}));
document.getElementById("filters").addEventListener("input", update);
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
const ready = setInterval(() => {  // Bokeh draws after this script
  if (!window.Bokeh || Bokeh.documents.length === 0) return;
  clearInterval(ready);
  update();
}, 50);
