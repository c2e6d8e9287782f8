const MOST_CURVES = 8;

// A family of curves is a protocol at several shares of the labels, or a few-shot head at several numbers of shots.
function efficiencyFamilies() {
  const found = new Map();
  for (const row of measuredRows) {
    const shots = /^fewshot:(.+)-(\d+)$/.exec(row.protocol);
    if (row.protocol.startsWith("shift:")) continue;
    const key = shots ? `few shots, ${shots[1]}` : row.protocol;
    const family = `${row.task}\n${key}`;
    if (!found.has(family)) found.set(family, { task: row.task, title: key, shots: Boolean(shots), points: [] });
    found.get(family).points.push({ at: shots ? Number(shots[2]) : row.fraction, row });
  }
  return [...found.values()].filter((family) => unique(family.points.map((point) => point.at)).length > 1);
}

function drawEfficiency() {
  if (!byId("efficiency")) return;
  const task = byId("efficiency-task").value, metric = metricFor(task);
  const parent = byId("efficiency-plots");
  parent.replaceChildren();
  const sign = data.higher[metric] ? 1 : -1;
  const waiting = [];
  let total = 0;
  for (const family of efficiencyFamilies().filter((entry) => entry.task === task)) {
    const points = family.points.filter((point) => point.row.values[metric] && point.row.values[metric][0] !== null);
    if (!points.length) continue;
    const last = new Map();
    for (const point of [...points].sort((a, b) => a.at - b.at)) last.set(point.row.encoder, sign * point.row.values[metric][0]);
    const encoders = leading(data.encoders, (name) => last.get(name), MOST_CURVES);
    total = Math.max(total, last.size);
    const plot = frame(parent, brief(family.title), family.shots ? "labelled tiles per class" : taskFacts.get(task).kind === "nuclei" ? "share of the labelled images" : "share of the labels", 300, `${metricName(metric)} on ${task} over ${family.shots ? "shots" : "labels"}, ${family.title}; the leaderboard holds the numbers`);
    waiting.push([plot, family, points, encoders]);
  }
  const names = unique(waiting.flatMap((entry) => entry[3]));
  byId("efficiency-legend").replaceChildren(...legendOf(names));
  byId("efficiency-note").textContent = waiting.length ? `${metricName(metric)}; bands are 95 % intervals.${leftOut(Math.min(MOST_CURVES, total), total)}` : `${metricName(metric)} was not computed here.`;
  for (const entry of waiting) drawEfficiencyOf(...entry, metric);
}

function drawEfficiencyOf(plot, family, points, encoders, metric) {
  const traces = [];
  for (const encoder of encoders) {
    const line = points.filter((point) => point.row.encoder === encoder).sort((a, b) => a.at - b.at);
    const x = line.map((point) => point.at), values = line.map((point) => point.row.values[metric]);
    const color = encoderTone(encoder);
    if (values.every((v) => v[1] !== null)) {
      const edge = { type: "scatter", mode: "lines", x, line: { width: 0 }, hoverinfo: "skip" };
      traces.push({ ...edge, y: values.map((v) => v[1]) }, { ...edge, y: values.map((v) => v[2]), fill: "tonexty", fillcolor: faded(color, 0.14) });
    }
    traces.push({
      type: "scatter", mode: "lines+markers", x, y: values.map((v) => v[0]), line: { color, width: 2 }, marker: { color, size: 7, symbol: symbol(encoderNumber.get(encoder))[0] },
      customdata: values.map((v) => (v[1] === null ? "no interval" : `${fixed(v[1])} to ${fixed(v[2])}`)),
      hovertemplate: "<b>%{y:.3f}</b> (%{customdata})" + extra(encoder),
    });
  }
  const ticks = unique(points.map((point) => point.at)).sort((a, b) => a - b);
  const name = (at) => (family.shots ? String(at) : `${Number((100 * at).toPrecision(6))} %`);
  const ends = [Math.log10(ticks[0]) - 0.08, Math.log10(ticks[ticks.length - 1]) + 0.04 + 0.06 * (Math.log10(ticks[ticks.length - 1]) - Math.log10(ticks[0]))];
  draw(plot, traces, layout({ hovermode: "x unified", xaxis: { type: "log", range: ends, tickvals: ticks, ticktext: ticks.map(name), showgrid: false }, yaxis: { nticks: 6, tickformat: ".2f" } }));
}

function startEfficiency() {
  if (!byId("efficiency")) return;
  fill(byId("efficiency-task"), unique(efficiencyFamilies().map((family) => family.task)));
  byId("efficiency-task").addEventListener("change", drawEfficiency);
}
