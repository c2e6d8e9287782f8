function backdrop(share) {
  const [r, g, b] = variable("--heat").split(",").map(Number);
  const card = variable("--card");
  const base = [1, 3, 5].map((at) => parseInt(card.slice(at, at + 2), 16));
  const mixed = [r, g, b].map((value, i) => Math.round(base[i] + (value - base[i]) * share));
  const linear = mixed.map((value) => ((value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  // Of black and white one always has a contrast of at least 4.5.
  return { background: `rgb(${mixed})`, color: light > 0.179 ? "#000" : "#fff" };
}

function drawMatrix(parent, encoder) {
  const task = byId("confusion-task").value;
  const condition = byId("confusion-condition").value;
  const entry = data.confusion.find((e) => e.encoder === encoder && e.task === task && e.condition === condition);
  if (!entry) {
    parent.replaceChildren(element("p", { class: "empty" }, `No predictions of ${encoder} on ${task} with ${condition}.`));
    return;
  }
  const totals = entry.counts.map((row) => row.reduce((a, b) => a + b, 0));
  const head = element("tr", {}, element("td", {}), ...entry.classes.map((name) => element("th", { scope: "col" }, ...breakable(name))));
  head.cells[0].style.height = "auto";
  const over = element("tr", {}, element("td", {}), element("th", { colspan: entry.classes.length, scope: "colgroup", class: "over" }, "predicted"));
  over.cells[0].style.height = "auto";
  const rows = entry.counts.map((row, i) => element("tr", {}, element("th", { scope: "row" }, ...breakable(entry.classes[i])), ...row.map((count, j) => {
    const share = totals[i] ? count / totals[i] : 0;
    const cell = element("td", { title: `${count} of ${totals[i]} images of ${entry.classes[i]} predicted as ${entry.classes[j]}` }, totals[i] ? percent(share) : "–", element("small", {}, String(count)));
    Object.assign(cell.style, backdrop(share));
    return cell;
  })));
  const what = entry.votes ? "share and count, mean of all draws" : "share and count";
  const note = entry.seeds > 1 ? `${what}, ${entry.seeds} seeds summed` : what;
  const table = element("table", { class: entry.classes.length > 6 ? "matrix dense" : "matrix" },
    element("caption", {}, `${encoder}: ${note}`), element("thead", {}, over, head), element("tbody", {}, ...rows));
  parent.replaceChildren(table);
}

function drawMatrices() {
  if (!data.confusion.length) return;
  for (const side of ["first", "second"]) drawMatrix(byId(`matrix-${side}`), byId(`confusion-${side}`).value);
}

function startConfusion() {
  if (!data.confusion.length) return;
  const tasks = unique(data.confusion.map((e) => e.task));
  const conditions = () => unique(data.confusion.filter((e) => e.task === byId("confusion-task").value).map((e) => e.condition));
  const encoders = unique(data.confusion.map((e) => e.encoder));
  fill(byId("confusion-task"), tasks);
  fill(byId("confusion-condition"), conditions());
  fill(byId("confusion-first"), encoders, encoders[0]);
  fill(byId("confusion-second"), encoders, encoders[1] ?? encoders[0]);
  if (encoders.length < 2) byId("confusion-second").closest(".panel").hidden = true;
  byId("confusion-task").addEventListener("change", () => {
    fill(byId("confusion-condition"), conditions(), byId("confusion-condition").value);
    drawMatrices();
  });
  for (const id of ["confusion-condition", "confusion-first", "confusion-second"]) byId(id).addEventListener("change", drawMatrices);
}
