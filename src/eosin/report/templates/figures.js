const settings = { displayModeBar: false, responsive: true };

function layout(special) {
  const axis = { gridcolor: variable("--line"), zerolinecolor: variable("--line"), linecolor: variable("--line"), fixedrange: true, automargin: true };
  return {
    font: { family: variable("--sans"), size: 13, color: variable("--soft") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 8, r: 8, t: 10, b: 8 },
    showlegend: false,
    dragmode: false,
    hoverlabel: { bgcolor: variable("--card"), bordercolor: variable("--line"), font: { color: variable("--ink"), family: variable("--sans") } },
    ...special,
    xaxis: { ...axis, ...special.xaxis },
    yaxis: { ...axis, ...special.yaxis },
  };
}

// With a view box, the printed page can scale a figure that was drawn for the window.
function draw(plot, traces, shape) {
  const first = !plot.classList.contains("js-plotly-plot");
  Plotly.react(plot, traces, shape, settings);
  if (!first) return;
  const mark = () => all(".main-svg", plot).forEach((svg) => svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`));
  plot.on("plotly_afterplot", mark);
  mark();
}

function frame(parent, title, note, height, label) {
  const plot = element("div", { role: "img", "aria-label": label });
  plot.style.height = `${height}px`;
  const caption = element("figcaption", {}, title);
  if (note) caption.append(element("span", { class: "quiet" }, note));
  parent.append(element("figure", {}, caption, plot));
  return plot;
}

function dashed(at, text) {
  return {
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: at, y1: at, line: { color: variable("--soft"), width: 1.2, dash: "dash" } }],
    annotations: text ? [{ xref: "paper", x: 1, y: at, text, showarrow: false, xanchor: "right", yanchor: "bottom", font: { size: 12 } }] : [],
  };
}

function drawBars() {
  const parent = byId("bars");
  const rows = filteredRows().filter((row) => row.values && row.values[metricFor(row.task)][0] !== null);
  const waiting = [];
  let most = 0, total = 0;
  const several = unique(rows.map((row) => metricFor(row.task))).length > 1;
  parent.replaceChildren();
  for (const [task, group] of groupBy(rows, (row) => row.task)) {
    const metric = metricFor(task);
    const sign = data.higher[metric] ? 1 : -1;
    const conditions = unique(group.map((row) => row.condition)).slice(0, MOST_CONDITIONS);
    const best = new Map();
    for (const row of group) if (conditions.includes(row.condition)) best.set(row.encoder, Math.max(best.get(row.encoder) ?? -Infinity, sign * row.values[metric][0]));
    const encoders = leading(data.encoders, (name) => best.get(name), MOST_BARS);
    [most, total] = [Math.max(most, encoders.length), Math.max(total, best.size)];
    const title = `Bar chart of ${metricName(metric)} on ${task}; the table above holds the numbers`;
    waiting.push([frame(parent, several ? `${task}: ${metricName(metric)}` : task, "", 320, title), group, conditions, encoders, metric]);
  }
  byId("bars-legend").replaceChildren(...legendOf(unique(waiting.flatMap((entry) => entry[3]))));
  byId("bars-limit").textContent = leftOut(most, total);
  // A figure takes the width it has once all stand in the grid.
  for (const entry of waiting) drawBarsOf(...entry);
}

function drawBarsOf(plot, rows, conditions, encoders, metric) {
  const place = new Map(rows.map((row) => [`${row.encoder}\n${row.condition}`, row.values[metric]]));
  const traces = encoders.map((encoder) => {
    const values = conditions.map((condition) => place.get(`${encoder}\n${condition}`) ?? [null, null, null]);
    return {
      type: "bar",
      name: plain(encoder),
      x: conditions.map(plain),
      y: values.map((v) => v[0]),
      text: values.map((v) => (v[0] === null ? "" : v[0].toFixed(2))),
      textposition: "inside",
      insidetextanchor: "start",
      textangle: 0,
      textfont: { size: 12 },
      customdata: values.map((v) => (v[1] === null ? "no interval" : `95 % interval ${fixed(v[1])} to ${fixed(v[2])}`)),
      hovertemplate: "<b>%{y:.3f}</b><br>%{customdata}" + extra(encoder),
      marker: { color: encoderTone(encoder), cornerradius: 3 },
      error_y: {
        type: "data",
        symmetric: false,
        array: values.map((v) => (v[2] === null ? 0 : v[2] - v[0])),
        arrayminus: values.map((v) => (v[1] === null ? 0 : v[0] - v[1])),
        color: variable("--ink"),
        thickness: 1.4,
        width: 4,
      },
    };
  });
  const level = data.tasks.find((task) => task.name === rows[0].task).chance[metric];
  const share = metric.endsWith("_lost") || metric.endsWith("_moved") ? {} : { range: [0, 1.03], tickvals: [0, 0.2, 0.4, 0.6, 0.8, 1], tickformat: ".1f" };
  draw(plot, traces, layout({
    ...(level === null ? {} : dashed(level, "")),
    barmode: "group",
    bargap: 0.22,
    bargroupgap: 0.08,
    uniformtext: { mode: "hide", minsize: 10 },
    xaxis: { tickvals: conditions.map(plain), ticktext: conditions.map((condition) => plain(brief(condition))), tickfont: { size: conditions.length > 3 ? 12 : 14, color: variable("--ink") }, showgrid: false },
    yaxis: { ...share, zeroline: true },
  }));
}

const dashes = [["solid", ""], ["dot", "2 3"], ["dash", "6 4"], ["longdash", "10 4"], ["dashdot", "8 3 2 3"]];

function drawCurves() {
  const parent = byId("curves");
  if (!parent) return;
  parent.replaceChildren();
  const seeds = unique(data.training.flatMap((panel) => panel.curves.map((curve) => curve.seed))).sort((a, b) => a - b);
  const style = (curve) => dashes[seeds.indexOf(curve.seed) % dashes.length];
  const title = (curve) => (seeds.length > 1 ? `${curve.encoder}, seed ${curve.seed}` : curve.encoder);
  const plots = data.training.map((panel) => frame(parent, panel.title, panel.note, 230, `${panel.title} of ${panel.curves.map(title).join("; ")} over training steps`));
  for (const [number, panel] of data.training.entries()) {
    const traces = panel.curves.map((curve) => ({
      type: "scatter",
      mode: curve.steps.length === 1 ? "markers" : curve.steps.length < 40 ? "lines+markers" : "lines",
      x: curve.steps,
      y: curve.values,
      line: { color: encoderTone(curve.encoder), width: 2, dash: style(curve)[0] },
      marker: { color: encoderTone(curve.encoder), size: 5 },
      hovertemplate: "step %{x}<br><b>%{y:.4g}</b>" + extra(title(curve)),
    }));
    const level = panel.chance;
    const mark = level === null ? {} : dashed(level, `chance ${level.toFixed(2)}`);
    draw(plots[number], traces, layout({
      ...mark,
      xaxis: { showgrid: false, nticks: 5, rangemode: "tozero" },
      yaxis: { nticks: 5, exponentformat: "power", ...(level === null ? {} : { autorangeoptions: { include: level * 1.04 } }) },
    }));
  }
  const runs = new Map(data.training.flatMap((panel) => panel.curves.map((curve) => [title(curve), curve])));
  byId("training-legend").replaceChildren(...[...runs].map(([text, curve]) => {
    const item = element("li", {}, text);
    item.insertAdjacentHTML("afterbegin", `<svg viewBox="0 0 26 8" style="width:26px" aria-hidden="true"><line x1="0" x2="26" y1="4" y2="4" stroke="${encoderTone(curve.encoder)}" stroke-width="2.5" stroke-dasharray="${style(curve)[1]}"/></svg>`);
    return item;
  }));
}
