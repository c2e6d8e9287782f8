const settings = { displayModeBar: false, responsive: true };

function layout(extra) {
  const axis = { gridcolor: variable("--line"), zerolinecolor: variable("--line"), linecolor: variable("--line"), fixedrange: true, automargin: true };
  return {
    font: { family: variable("--sans"), size: 13, color: variable("--soft") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 8, r: 8, t: 10, b: 8 },
    showlegend: false,
    dragmode: false,
    hoverlabel: { bgcolor: variable("--card"), bordercolor: variable("--line"), font: { color: variable("--ink"), family: variable("--sans") } },
    ...extra,
    xaxis: { ...axis, ...extra.xaxis },
    yaxis: { ...axis, ...extra.yaxis },
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
  const metric = byId("metric").value;
  const name = data.metric_names[metric];
  const parent = byId("bars");
  parent.replaceChildren();
  const waiting = [];
  for (const figure of data.bars) {
    const shown = figure.metrics[metric];
    if (!shown) {
      parent.append(element("figure", {}, element("figcaption", {}, figure.task), element("p", { class: "empty" }, `${name} was not computed for this task.`)));
      continue;
    }
    const plot = frame(parent, figure.task, "", 320, `Bar chart of ${name} on ${figure.task}; the table above holds the numbers`);
    waiting.push([plot, figure, shown]);
  }
  // A figure takes the width it has once all stand in the grid.
  for (const [plot, figure, shown] of waiting) drawBarsOf(plot, figure, shown);
}

function drawBarsOf(plot, figure, shown) {
  const traces = data.encoders.map((encoder) => [encoder, shown.encoders[encoder]]).map(([encoder, values]) => ({
    type: "bar",
    name: plain(encoder),
    x: figure.conditions.map(plain),
    y: values.map((v) => (v ? v.value : null)),
    text: values.map((v) => (v ? v.value.toFixed(2) : "")),
    textposition: "inside",
    insidetextanchor: "start",
    textangle: 0,
    textfont: { size: 12 },
    customdata: values.map((v) => (v && v.low !== null ? `95 % interval ${v.low.toFixed(3)} to ${v.high.toFixed(3)}` : "no interval")),
    hovertemplate: "<b>%{y:.3f}</b><br>%{customdata}<extra>" + plain(encoder).replace(/%/g, "&#37;") + "</extra>",
    marker: { color: encoderTone(encoder), cornerradius: 3 },
    error_y: {
      type: "data",
      symmetric: false,
      array: values.map((v) => (v && v.high !== null ? v.high - v.value : 0)),
      arrayminus: values.map((v) => (v && v.low !== null ? v.value - v.low : 0)),
      color: variable("--ink"),
      thickness: 1.4,
      width: 4,
    },
  }));
  const mark = shown.chance === null ? {} : dashed(shown.chance, "");
  draw(plot, traces, layout({
    ...mark,
    barmode: "group",
    bargap: 0.22,
    bargroupgap: 0.08,
    uniformtext: { mode: "hide", minsize: 10 },
    xaxis: { tickfont: { size: 14, color: variable("--ink") }, showgrid: false },
    yaxis: { range: [0, 1.03], tickvals: [0, 0.2, 0.4, 0.6, 0.8, 1], tickformat: ".1f", zeroline: true },
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
      hovertemplate: "step %{x}<br><b>%{y:.4g}</b><extra>" + plain(title(curve)).replace(/%/g, "&#37;") + "</extra>",
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
