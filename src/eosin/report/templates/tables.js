function sortTable(button) {
  const heading = button.closest("th");
  const column = [...heading.parentNode.children].indexOf(heading);
  const body = heading.closest("table").tBodies[0];
  const numeric = heading.classList.contains("number");
  const current = heading.getAttribute("aria-sort");
  const first = numeric && !("ascending" in heading.dataset) ? "descending" : "ascending";
  const direction = current === "none" ? first : current === "ascending" ? "descending" : "ascending";
  // A cell that spans columns shifts its followers, so a row is read by column, not by position.
  const key = (row) => {
    let at = 0;
    for (const cell of row.cells) {
      if (at === column) return cell.dataset.sort ?? cell.textContent.trim();
      at += cell.colSpan;
    }
    return "";
  };
  const rows = [...body.rows].map((row, place) => ({ row, place, key: key(row) }));
  const sign = direction === "ascending" ? 1 : -1;
  const words = new Intl.Collator(undefined, { numeric: true });
  rows.sort((a, b) => {
    if ((a.key === "") !== (b.key === "")) return a.key === "" ? 1 : -1;
    const order = numeric ? Number(a.key) - Number(b.key) : words.compare(a.key, b.key);
    return sign * (order || 0) || a.place - b.place;
  });
  all("th[aria-sort]", heading.parentNode).forEach((other) => other.setAttribute("aria-sort", "none"));
  heading.setAttribute("aria-sort", direction);
  body.append(...rows.map((entry) => entry.row));
}

function heading(label, numeric = false, ascending = false) {
  const button = element("button", { type: "button", class: "sort" }, label);
  button.addEventListener("click", () => sortTable(button));
  return element("th", { scope: "col", "aria-sort": "none", ...(numeric ? { class: "number" } : {}), ...(ascending ? { "data-ascending": "" } : {}) }, button);
}

function axisHeading(axis) {
  const ends = [axis.low, ...(axis.low < 0 && axis.high > 0 ? [0] : []), axis.high];
  return element("th", { scope: "col", class: "wide" }, element("span", { class: "visually-hidden" }, "Interval drawn"),
    element("span", { class: "axis", "aria-hidden": "true" }, ...ends.map((end) => element("span", {}, axis.low < 0 && end ? (end < 0 ? "−" : "+") + Math.abs(end).toFixed(2) : end === 0 ? "0" : end.toFixed(2)))));
}

// A round range around what is drawn; shares stay within 0 and 1.
function axisOf(values, mark = null) {
  const known = values.filter((value) => value !== null && value !== undefined);
  if (!known.length) return { low: 0, high: 1, mark: null };
  const lowest = Math.min(...known), highest = Math.max(...known);
  let low = Math.floor(lowest * 20 - 0.25) / 20, high = Math.ceil(highest * 20 + 0.25) / 20;
  if (lowest >= 0) low = Math.max(0, low);
  if (highest <= 1) high = Math.min(1, high);
  high = Math.max(high, low + 0.05);
  return { low, high, mark: mark !== null && low < mark && mark < high ? mark : null };
}

function intervalDrawing([value, low, high], axis, toneClass) {
  const place = (v) => `${(100 * Math.min(Math.max((v - axis.low) / (axis.high - axis.low), 0), 1)).toFixed(2)}%`;
  const parts = [drawn("line", { class: "track", x1: "0", x2: "100%", y1: 9, y2: 9 })];
  if (axis.mark !== null) parts.push(drawn("line", { class: "mark", x1: place(axis.mark), x2: place(axis.mark), y1: 1, y2: 17 }));
  if (low !== null && high !== null) parts.push(drawn("line", { class: `range ${toneClass}`, x1: place(low), x2: place(high), y1: 9, y2: 9 }));
  if (value !== null) parts.push(drawn("circle", { class: `point ${toneClass}`, cx: place(value), cy: 9, r: 4.5 }));
  return drawn("svg", { class: "interval", height: 18, "aria-hidden": "true" }, ...parts);
}
