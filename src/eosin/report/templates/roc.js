const MOST_ROC = 10;

const rocCells = () => data.roc.cells.filter((cell) => cell.task === byId("roc-task").value && cell.condition === byId("roc-condition").value);

function rocLines(cells) {
  const chosen = byId("roc-show").value;
  if (chosen) {
    const cell = cells.find((entry) => entry.encoder === chosen);
    return cell ? cell.classes.map((name, i) => ({ name, curve: cell.curves[i], area: cell.areas[i], color: tone(i), dash: dashes[Math.floor(i / 8) % dashes.length][0] })) : [];
  }
  const areas = new Map(cells.map((cell) => [cell.encoder, cell.macro_area]));
  const names = leading(cells.map((cell) => cell.encoder), (name) => areas.get(name), MOST_ROC);
  return cells.filter((cell) => names.includes(cell.encoder)).map((cell) => ({
    name: cell.encoder, curve: cell.macro ?? cell.curves[0], area: cell.macro_area, color: encoderTone(cell.encoder), dash: dashes[Math.floor(encoderNumber.get(cell.encoder) / 8) % dashes.length][0],
  })).sort((a, b) => b.area - a.area);
}

function drawRoc() {
  if (!byId("roc-plot")) return;
  const cells = rocCells();
  const lines = rocLines(cells);
  const chosen = byId("roc-show").value;
  const plot = byId("roc-plot");
  const traces = [{ type: "scatter", mode: "lines", x: [0, 1], y: [0, 1], hoverinfo: "skip", line: { color: variable("--soft"), width: 1, dash: "dash" } }];
  for (const line of lines) {
    const [x, y] = line.curve.map((values) => values.map((value) => value / data.roc.steps));
    traces.push({ type: "scatter", mode: "lines", x, y, line: { color: line.color, width: 2, dash: line.dash }, hovertemplate: "%{y:.3f} at %{x:.3f}" + extra(line.name) });
  }
  plot.setAttribute("aria-label", `ROC curves: ${lines.map((line) => `${line.name} ${fixed(line.area)}`).join(", ")}`);
  const axis = { range: [-0.01, 1.01], tickvals: [0, 0.25, 0.5, 0.75, 1] };
  draw(plot, traces, layout({ xaxis: { ...axis, title: { text: "false-positive rate" } }, yaxis: { ...axis, title: { text: "true-positive rate" }, scaleanchor: "x" } }));
  byId("roc-legend").replaceChildren(...lines.map((line) => {
    const key = drawn("svg", { viewBox: "0 0 26 8", style: "width:26px", "aria-hidden": "true" }, drawn("line", { x1: 0, x2: 26, y1: 4, y2: 4, stroke: line.color, "stroke-width": 2.5, "stroke-dasharray": dashes.find((entry) => entry[0] === line.dash)[1] }));
    return element("li", {}, key, element("span", {}, ...breakable(line.name)), element("span", { class: "quiet" }, ` AUROC ${fixed(line.area)}`));
  }));
  const seeds = Math.max(0, ...cells.map((cell) => cell.seeds));
  const what = chosen ? "One class against all others." : cells.some((cell) => cell.macro) ? "The mean over the classes, each against all others." : "";
  byId("roc-note").textContent = `${what}${seeds > 1 ? " Averaged over seeds." : ""} Curves are thinned with the area under them unchanged.${chosen ? "" : leftOut(lines.length, cells.length)}`.trim();
}

function startRoc() {
  if (!byId("roc-plot")) return;
  const conditions = () => unique(data.roc.cells.filter((cell) => cell.task === byId("roc-task").value).map((cell) => cell.condition));
  const encoders = () => unique(rocCells().map((cell) => cell.encoder));
  const offer = () => fill(byId("roc-show"), ["", ...encoders()], byId("roc-show").value, ["every encoder, mean of classes", ...encoders().map((name) => `${name}, each class`)]);
  fill(byId("roc-task"), unique(data.roc.cells.map((cell) => cell.task)));
  fill(byId("roc-condition"), conditions());
  offer();
  byId("roc-task").addEventListener("change", () => {
    fill(byId("roc-condition"), conditions(), byId("roc-condition").value);
    offer();
    drawRoc();
  });
  byId("roc-condition").addEventListener("change", () => { offer(); drawRoc(); });
  byId("roc-show").addEventListener("change", drawRoc);
}
