const MOST_SHIFT = 8;
const shiftRows = measuredRows.filter((row) => row.protocol.startsWith("shift:") && row.protocol !== "shift:none");
const shiftMetrics = Object.keys(data.metric_names).filter((metric) => metric.endsWith("_lost") && shiftRows.some((row) => metric in row.values));

function drawShift() {
  if (!byId("shift")) return;
  const task = byId("shift-task").value;
  const rows = shiftRows.filter((row) => row.task === task && row.fraction === Math.max(...shiftRows.filter((other) => other.task === task).map((other) => other.fraction)));
  const changes = unique(rows.map((row) => row.protocol.slice(6)));
  const lost = byId("shift-metric").value;
  const names = unique(rows.map((row) => row.encoder));
  const worst = (name) => -Math.max(...rows.filter((row) => row.encoder === name).map((row) => row.values[lost]?.[0] ?? -Infinity));
  const encoders = leading(data.encoders.filter((name) => names.includes(name)), worst, MOST_SHIFT);
  const parent = byId("shift-plots");
  parent.replaceChildren();
  const height = 70 + changes.length * Math.max(34, 12 * encoders.length);
  const waiting = [lost, "embedding_moved"].filter((metric) => rows.some((row) => row.values[metric])).map((metric) => {
    const note = metric === "embedding_moved" ? "mean cosine distance from the unchanged image’s embedding; 0 is unmoved" : "how much lower the value is than on the unchanged images";
    return [frame(parent, metricName(metric), note, height, `${metricName(metric)} by change and encoder on ${task}; the leaderboard holds the numbers`), metric];
  });
  byId("shift-legend").replaceChildren(...legendOf(encoders));
  byId("shift-note").textContent = `The probe is fitted on unchanged training images; lines are 95 % intervals.${leftOut(encoders.length, names.length)}`;
  for (const [plot, metric] of waiting) drawShiftOf(plot, rows, changes, encoders, metric);
}

function drawShiftOf(plot, rows, changes, encoders, metric) {
  const traces = encoders.map((encoder, number) => {
    const shown = rows.filter((row) => row.encoder === encoder && row.values[metric] && row.values[metric][0] !== null);
    const values = shown.map((row) => row.values[metric]);
    const offset = encoders.length > 1 ? 0.7 * (number / (encoders.length - 1) - 0.5) : 0;
    return {
      type: "scatter", mode: "markers", x: values.map((v) => v[0]), y: shown.map((row) => changes.indexOf(row.protocol.slice(6)) + offset),
      marker: { color: encoderTone(encoder), size: 9, symbol: symbol(encoderNumber.get(encoder))[0] },
      error_x: { type: "data", symmetric: false, array: values.map((v) => (v[2] === null ? 0 : v[2] - v[0])), arrayminus: values.map((v) => (v[1] === null ? 0 : v[0] - v[1])), color: encoderTone(encoder), thickness: 1.8, width: 0 },
      customdata: values.map((v, i) => [plain(shown[i].protocol.slice(6)), v[1] === null ? "no interval" : `${signed(v[1])} to ${signed(v[2])}`]),
      hovertemplate: "%{customdata[0]}: <b>%{x:.3f}</b> (%{customdata[1]})" + extra(encoder),
    };
  });
  const between = changes.slice(1).map((_, i) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: i + 0.5, y1: i + 0.5, line: { color: variable("--line"), width: 1 } }));
  draw(plot, traces, layout({
    shapes: [...between, { type: "line", yref: "paper", y0: 0, y1: 1, x0: 0, x1: 0, line: { color: variable("--soft"), width: 1.2, dash: "dash" } }],
    xaxis: { nticks: 6, tickformat: ".2f" },
    yaxis: { range: [changes.length - 0.5, -0.5], tickvals: changes.map((_, i) => i), ticktext: changes.map(plain), showgrid: false, tickfont: { color: variable("--ink") } },
  }));
}

function startShift() {
  if (!byId("shift")) return;
  fill(byId("shift-task"), unique(shiftRows.map((row) => row.task)));
  fill(byId("shift-metric"), shiftMetrics, `${data.metric}_lost`, shiftMetrics.map(metricName));
  byId("shift-metric").closest(".picker").hidden = shiftMetrics.length < 2;
  for (const id of ["shift-task", "shift-metric"]) byId(id).addEventListener("change", drawShift);
}
