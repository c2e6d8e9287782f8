const FEW_FAMILIES = 8;
const MOST_MATRICES = 4;
const SMALL_FROM = 14;
const SIDE_BY_SIDE = 5;
const LEVEL = 0.05;
let bestOfFamily = new Map();

const familyKey = (entry) => `${entry.task}\n${entry.condition}`;
const verdictOf = (difference, p) => (p >= LEVEL ? "not told apart" : difference > 0 ? "higher" : "lower");
const verdictTone = (verdict) => `tone-${verdict.replaceAll(" ", "-")}`;

function shownFamilies() {
  const task = byId("difference-task").value, condition = byId("difference-condition").value;
  return data.differences.filter((family) => (!task || family.task === task) && (!condition || family.condition === condition));
}

// Each pair from both sides, so that any encoder can be the reference.
function bothWays(family) {
  return family.pairs.flatMap(([a, b, d, low, high, p]) => [
    { family, encoder: data.encoders[a], reference: data.encoders[b], d, low, high, p },
    { family, encoder: data.encoders[b], reference: data.encoders[a], d: 0 - d, low: high === null ? null : 0 - high, high: low === null ? null : 0 - low, p },
  ]);
}

function differenceRow(entry, axis) {
  const verdict = verdictOf(entry.d, entry.p);
  return element("tr", {}, element("th", { scope: "row", "data-sort": entry.encoder }, encoderLabel(entry.encoder)),
    element("td", { "data-sort": entry.reference }, encoderLabel(entry.reference)),
    element("td", { class: "long", "data-sort": entry.family.condition }, ...settled(entry.family.condition)),
    element("td", { class: "number strong", "data-sort": entry.d }, signed(entry.d)),
    element("td", { class: "wide" }, intervalDrawing([entry.d, entry.low, entry.high], axis, verdictTone(verdict))),
    element("td", { class: "number quiet" }, entry.low === null ? "no interval" : `${signed(entry.low)} to ${signed(entry.high)}`),
    element("td", { class: "number", "data-sort": entry.p }, pValue(entry.p)),
    element("td", { "data-sort": verdict }, element("span", { class: `tag ${verdictTone(verdict)}` }, verdict)));
}

function drawDifferenceTables(families) {
  const chosen = byId("reference").value;
  const tables = [];
  for (const [task, group] of groupBy(families, (family) => family.task)) {
    const rows = group.flatMap((family) => bothWays(family).filter((entry) => entry.reference === (chosen || bestOfFamily.get(familyKey(family)))).sort((a, b) => b.d - a.d));
    if (!rows.length) continue;
    const reach = Math.max(0.02, Math.ceil(21 * Math.max(...rows.flatMap((row) => [row.d, row.low, row.high]).map((v) => Math.abs(v ?? 0)))) / 20);
    const axis = { low: -reach, high: reach, mark: 0 };
    const caption = element("caption", {}, element("strong", {}, task), " ", element("span", { class: "quiet" }, `${inWords(group[0].metric)}, paired; p after Holm’s correction over all pairs of a protocol`));
    const head = element("tr", {}, heading("Encoder"), heading("minus"), heading("Protocol"), heading("Difference", true), axisHeading(axis), element("th", { scope: "col", class: "number" }, "95 % interval"), heading("p", true, true), heading("Verdict"));
    tables.push(element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Differences on ${task}` },
      element("table", { class: "board differences" }, caption, element("thead", {}, head), element("tbody", {}, ...rows.map((row) => differenceRow(row, axis))))));
  }
  byId("difference-tables").replaceChildren(...tables);
  if (!tables.length) byId("difference-tables").append(element("p", { class: "empty" }, "No paired test against this encoder is stored here."));
}

function significanceMatrix(family) {
  const tests = new Map(bothWays(family).map((entry) => [`${entry.encoder}\n${entry.reference}`, entry]));
  const values = new Map(measuredRows.filter((row) => row.task === family.task && row.condition === family.condition).map((row) => [row.encoder, row.values[family.metric]?.[0] ?? null]));
  const names = data.encoders.filter((name) => values.has(name)).sort((a, b) => (values.get(b) ?? -Infinity) - (values.get(a) ?? -Infinity));
  const small = names.length > SMALL_FROM;
  const cell = (row, column) => {
    if (row === column) return element("td", { class: "self" });
    const test = tests.get(`${row}\n${column}`);
    if (!test) return element("td", { class: "untested", title: `${row} and ${column}: no paired test is stored` }, "?");
    const verdict = verdictOf(test.d, test.p);
    const glyph = verdict === "higher" ? "▲" : verdict === "lower" ? "▼" : "·";
    const node = element("td", { class: verdictTone(verdict), title: `${row} ${verdict === "not told apart" ? "not told apart from" : `${verdict} than`} ${column}: ${signed(test.d)}, p ${test.p < 0.001 ? "" : "= "}${pValue(test.p)}` }, glyph);
    if (!small) node.append(element("small", {}, pValue(test.p)));
    return node;
  };
  const head = element("tr", {}, element("td", {}), ...names.map((name) => element("th", { scope: "col" }, ...breakable(name))));
  const rows = names.map((row) => element("tr", {}, element("th", { scope: "row" }, encoderLabel(row)), ...names.map((column) => cell(row, column))));
  return element("div", { class: `panel${names.length > SIDE_BY_SIDE ? " whole" : ""}` }, element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Significance of pairs on ${family.task}` },
    element("table", { class: `pairs${small ? " small" : ""}` }, element("caption", {}, element("strong", {}, family.task), " ", element("span", { class: "quiet" }, `${brief(family.condition)}, ${inWords(family.metric)}`)),
      element("thead", {}, head), element("tbody", {}, ...rows))));
}

function drawDifferences() {
  if (!byId("difference-tables")) return;
  const families = shownFamilies();
  const shown = families.slice(0, data.encoders.length > SMALL_FROM ? 1 : MOST_MATRICES);
  byId("significance").replaceChildren(...shown.map(significanceMatrix));
  byId("significance-note").textContent = shown.length < families.length ? ` The first ${shown.length} of ${families.length} matrices shown; choose a task or protocol for another.` : "";
  drawDifferenceTables(families);
}

function startDifferences() {
  if (!byId("difference-tables")) return;
  const compared = new Map(data.differences.map((family) => [familyKey(family), family.metric]));
  bestOfFamily = new Map(measuredRows.filter((row) => row.best.includes(compared.get(familyKey(row)))).map((row) => [familyKey(row), row.encoder]));
  const tasks = unique(data.differences.map((family) => family.task)), conditions = unique(data.differences.map((family) => family.condition));
  // Many protocols, shares and altered stains make a table of thousands of rows, which nobody reads: one protocol is shown first.
  const many = data.differences.length > FEW_FAMILIES;
  const task = many && tasks.length > MOST_MATRICES ? tasks[0] : "";
  const condition = many && conditions.length > 1 ? data.differences.find((family) => !task || family.task === task).condition : "";
  fill(byId("difference-task"), ["", ...tasks], task, ["all tasks", ...tasks]);
  fill(byId("difference-condition"), ["", ...conditions], condition, ["all protocols", ...conditions]);
  fill(byId("reference"), ["", ...data.encoders], "", ["the highest of each protocol", ...data.encoders]);
  for (const id of ["difference-task", "difference-condition"]) byId(id).addEventListener("change", drawDifferences);
  byId("reference").addEventListener("change", () => drawDifferenceTables(shownFamilies()));
}
