const MANY_ROWS = 250;
const MOST_BARS = 10;
const MOST_CONDITIONS = 6;

const MANY_CONDITIONS = 6;
// A value no protocol has: those that are neither few-shot episodes nor changed images.
const MAIN = "*";
const isSpecial = (row) => /^(shift|fewshot):/.test(row.protocol);


function groupBy(rows, key) {
  const groups = new Map();
  for (const row of rows) {
    const name = key(row);
    if (groups.has(name)) groups.get(name).push(row);
    else groups.set(name, [row]);
  }
  return groups;
}

const measuredRows = data.rows.filter((row) => row.values);
const taskFacts = new Map(data.tasks.map((task) => [task.name, task]));
const metricsOfTasks = new Map([...groupBy(measuredRows, (row) => row.task)].map(([task, rows]) => [task, new Set(rows.flatMap((row) => Object.keys(row.values)))]));

// The metric chosen above; of a task that has none of it, such as nuclei of accuracy, the task's own.
function metricFor(task) {
  const chosen = byId("metric").value;
  return metricsOfTasks.get(task)?.has(chosen) ? chosen : taskFacts.get(task).metric;
}

function filteredRows() {
  const task = byId("filter-task").value, protocol = byId("filter-protocol").value, fraction = byId("filter-fraction").value;
  const words = byId("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const known = new Set(measuredRows.filter((row) => metricFor(row.task) in row.values).map((row) => `${row.task}\n${row.condition}`));
  return data.rows.filter((row) =>
    (!task || row.task === task) && (!protocol || (protocol === MAIN ? !isSpecial(row) : row.protocol === protocol)) && (!fraction || String(row.fraction) === fraction) &&
    (row.values ? metricFor(row.task) in row.values : known.has(`${row.task}\n${row.condition}`)) &&
    words.every((word) => `${row.encoder} ${row.task} ${row.condition}`.toLowerCase().includes(word)));
}

function boardRow(row, metric, axis) {
  const name = element("th", { scope: "row", "data-sort": row.encoder });
  const long = row.condition.length > 28;
  const protocol = element("td", { "data-sort": row.condition, ...(long ? { class: "long" } : {}) }, ...settled(row.condition));
  if (!row.values) {
    name.append(encoderLabel(row.encoder));
    const none = () => element("td", { class: "number", "data-sort": "" }, "–");
    return element("tr", { class: "gap" }, name, protocol, none(), element("td", { class: "reason", colspan: 2 }, `no result (${row.gap})`), none(), none());
  }
  const best = row.best.includes(metric);
  const entry = element("span", { class: "entry" }, encoderLabel(row.encoder));
  if (best) entry.append(element("span", { class: "badge" }, data.higher[metric] ? "highest" : "lowest"));
  name.append(entry);
  protocol.append(" ", element("span", { class: "version", title: "Version of the protocol" }, `v${row.version}`));
  const [value, low, high, sd] = row.values[metric];
  const why = row.why[metric] ?? "";
  const spread = element("td", { class: "number", "data-sort": sd ?? "" });
  if (sd === null) spread.append(element("span", { class: "quiet" }, "one seed"));
  else spread.append(`± ${fixed(sd)} `, element("span", { class: "quiet" }, `(${row.seeds})`));
  return element("tr", best ? { class: "best" } : {}, name, protocol,
    element("td", { class: "number strong", "data-sort": value ?? "", ...(value === null && why ? { title: why } : {}) }, fixed(value)),
    element("td", { class: "wide" }, intervalDrawing(row.values[metric], axis, `c${encoderNumber.get(row.encoder) % COLORS}`)),
    element("td", { class: "number quiet" }, low === null ? element("span", { title: why || "no interval" }, "no interval") : `${fixed(low)}–${fixed(high)}`),
    spread, element("td", { class: "number", "data-sort": row.n.replaceAll(",", "").split("–")[0] }, row.n));
}

function publishedRow(entry, axis) {
  return element("tr", {}, element("th", { scope: "row" }, entry.encoder, " ", element("span", { class: "badge foreign" }, "published")),
    element("td", {}, entry.protocol),
    element("td", { class: "number" }, entry.value === null ? "not available" : fixed(entry.value)),
    element("td", { class: "wide" }, entry.value === null ? "" : intervalDrawing([entry.value, null, null], axis, "tone-foreign")),
    element("td", { class: "number" }, "none given"), element("td", { class: "number", colspan: 2 }, entry.date));
}

// They stand in bodies of their own, so that no sorting mixes them with what was measured.
function publishedBodies(entries, axis) {
  return [...groupBy(entries, (entry) => entry.source)].map(([source, group]) => element("tbody", { class: "published" },
    element("tr", {}, element("th", { scope: "colgroup", colspan: 7 }, "Published, not measured here and not ranked with the lines above: ", element("span", { class: "quiet" }, source))),
    ...group.map((entry) => publishedRow(entry, axis)),
    element("tr", {}, element("td", { class: "small", colspan: 7 }, `${group[0].note} ${group[0].url}`))));
}

function publishedOf(task, metric) {
  const protocol = byId("filter-protocol").value, fraction = byId("filter-fraction").value;
  if (byId("filter-text").value || (fraction && fraction !== "1")) return [];
  return data.published.filter((entry) => entry.task === task && entry.metric === metric && (!protocol || protocol === MAIN || protocol === entry.protocol));
}

function boardOf(task, rows, metric) {
  const about = taskFacts.get(task);
  const values = rows.flatMap((row) => (row.values ? row.values[metric].slice(0, 3) : []));
  const published = publishedOf(task, metric);
  const axis = axisOf([...values, ...published.map((entry) => entry.value)], about.chance[metric]);
  const classes = about.kind === "nuclei" ? `nuclei${about.classes ? ` of ${about.classes} types` : ""} · ` : about.classes ? `${about.classes} classes · ` : "";
  const body = element("tbody", {}, ...orderedRows(rows, metric).map((row) => boardRow(row, metric, axis)));
  const head = element("tr", {}, heading("Encoder"), heading("Protocol"), heading(`${metricName(metric)} ${arrow(metric)}`, true, !data.higher[metric]), axisHeading(axis),
    element("th", { scope: "col", class: "number" }, "95 % interval"), heading("± over seeds", true), heading("Test images", true));
  const caption = element("caption", {}, element("strong", {}, task), " ", element("span", { class: "quiet" }, `${classes}${about.n_train} training and ${about.n_test} test images · intervals resample ${about.grouping}s`));
  return element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Leaderboard of ${task}` }, element("table", { class: "board scores" }, caption, element("thead", {}, head), body, ...publishedBodies(published, axis)));
}

// Condition by condition, the best first; what has no value comes last.
function orderedRows(rows, metric) {
  const conditions = unique(rows.map((row) => row.condition));
  const value = (row) => row.values?.[metric]?.[0] ?? null;
  const sign = data.higher[metric] ? -1 : 1;
  return conditions.flatMap((condition) => {
    const group = rows.filter((row) => row.condition === condition);
    return [...group.filter((row) => value(row) !== null).sort((a, b) => sign * (value(a) - value(b))), ...group.filter((row) => value(row) === null)];
  });
}

function drawBoards() {
  const rows = filteredRows();
  const boards = [...groupBy(rows, (row) => row.task)].map(([task, group]) => boardOf(task, group, metricFor(task)));
  byId("boards").replaceChildren(...boards);
  if (!boards.length) byId("boards").append(element("p", { class: "empty" }, `No line fits: choose other filters, or another metric than ${metricName(byId("metric").value)}.`));
  byId("filter-count").textContent = `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} lines`;
}

function startBoards() {
  const shares = unique(data.rows.map((row) => row.fraction)).sort((a, b) => b - a);
  const tasks = data.tasks.map((task) => task.name);
  const protocols = unique(data.rows.map((row) => row.protocol));
  fill(byId("filter-task"), ["", ...tasks], "", ["all tasks", ...tasks]);
  const main = data.rows.some(isSpecial) && !data.rows.every(isSpecial) ? [MAIN] : [];
  fill(byId("filter-protocol"), ["", ...main, ...protocols], main[0] ?? "", ["all protocols", ...main.map(() => "main protocols"), ...protocols]);
  fill(byId("filter-fraction"), ["", ...shares.map(String)], "", ["any share", ...shares.map((share) => `${Number((100 * share).toPrecision(6))} %`)]);
  byId("filter-fraction").closest(".picker").hidden = shares.length < 2;
  byId("filter-protocol").closest(".picker").hidden = protocols.length < 2;
  byId("filter-task").closest(".picker").hidden = tasks.length < 2;
  // What would be a long page opens with all labels, and on the first task.
  if (unique(data.rows.map((row) => row.condition)).length > MANY_CONDITIONS && shares[0] === 1) byId("filter-fraction").value = "1";
  if (data.rows.length > MANY_ROWS) byId("filter-task").value = tasks[0];
  for (const id of ["filter-task", "filter-protocol", "filter-fraction"]) byId(id).addEventListener("change", () => { drawBoards(); drawBars(); });
  let waiting = 0;
  byId("filter-text").addEventListener("input", () => {
    drawBoards();
    clearTimeout(waiting);
    waiting = setTimeout(drawBars, 250);
  });
  byId("filter-clear").addEventListener("click", () => {
    for (const id of ["filter-task", "filter-protocol", "filter-fraction", "filter-text"]) byId(id).value = "";
    drawBoards();
    drawBars();
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName)) return;
    event.preventDefault();
    byId("filter-text").focus();
  });
}
