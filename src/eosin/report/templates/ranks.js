// The critical-difference figure of Demsar (JMLR 2006): encoders on an axis of mean ranks, bars join those that the
// test cannot tell apart.
function rankFigure(line) {
  const count = line.encoders.length;
  const width = 900, left = 240, right = 660, top = 74;
  const place = (rank) => (count < 2 ? (left + right) / 2 : left + ((rank - 1) / (count - 1)) * (right - left));
  const rank = new Map(line.encoders);
  const cliques = line.cliques.map((names) => names.map((name) => rank.get(name)).filter((value) => value !== undefined)).filter((values) => values.length > 1);
  const half = Math.ceil(count / 2);
  const first = top + 22 + 9 * cliques.length;
  const height = first + 24 * half + 8;
  const parts = [drawn("line", { class: "rule", x1: left, x2: right, y1: top, y2: top })];
  const step = Math.max(1, Math.ceil(count / 15));
  for (let tick = 1; tick <= count; tick += step) {
    parts.push(drawn("line", { class: "rule", x1: place(tick), x2: place(tick), y1: top - 6, y2: top }), drawn("text", { class: "tick", x: place(tick), y: top - 12, "text-anchor": "middle" }, String(tick)));
  }
  if (line.critical_difference !== null && count > 1) {
    const end = Math.min(place(1 + line.critical_difference), width - 20);
    parts.push(drawn("line", { class: "critical", x1: left, x2: end, y1: 24, y2: 24 }), drawn("line", { class: "critical", x1: left, x2: left, y1: 19, y2: 29 }), drawn("line", { class: "critical", x1: end, x2: end, y1: 19, y2: 29 }),
      drawn("text", { class: "tick", x: left, y: 13 }, `critical difference ${line.critical_difference.toFixed(2)}`));
  }
  cliques.forEach((values, number) => {
    const y = top + 12 + 9 * number;
    parts.push(drawn("line", { class: "clique", x1: place(Math.min(...values)) - 4, x2: place(Math.max(...values)) + 4, y1: y, y2: y }));
  });
  line.encoders.forEach(([name, value], number) => {
    const toLeft = number < half;
    const y = first + 24 * (toLeft ? number : count - 1 - number);
    const x = toLeft ? left - 20 : right + 20;
    const shown = name.length > 26 ? `${name.slice(0, 25)}…` : name;
    const label = drawn("text", { class: "name", x: toLeft ? x - 6 : x + 6, y: y + 4.5, "text-anchor": toLeft ? "end" : "start" }, `${shown} `, drawn("tspan", { class: "tick" }, value.toFixed(2)));
    label.append(drawn("title", {}, name));
    parts.push(drawn("polyline", { class: "arm", style: `stroke: ${encoderTone(name)}`, points: `${place(value)},${top} ${place(value)},${y} ${x},${y}` }), label);
  });
  return drawn("svg", { class: "ranks", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Mean ranks: ${line.encoders.map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", ")}` }, ...parts);
}

function drawRanks() {
  if (!byId("ranks")) return;
  const line = data.ranks[Number(byId("rank-line").value) || 0];
  const parent = byId("rank-figure");
  parent.replaceChildren();
  if (line.encoders.length) parent.append(element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Ranks" }, rankFigure(line)));
  const sentences = [`Ranks over ${line.tasks.length} task${line.tasks.length === 1 ? "" : "s"} (${line.tasks.join(", ")}), 1 is best.`];
  if (line.p !== null) sentences.push(`Friedman’s test that all are alike: statistic ${fixed(line.statistic, 2)}, p ${line.p < 0.001 ? "" : "= "}${pValue(line.p)}.`);
  if (line.critical_difference !== null) sentences.push("Encoders joined by a bar differ by less than the critical difference of Nemenyi’s test: these tasks cannot tell them apart.");
  if (line.reason) sentences.push(line.reason[0].toUpperCase() + line.reason.slice(1).replace(/[.]?$/, "."));
  byId("rank-note").textContent = sentences.join(" ");
}

function startRanks() {
  if (!byId("ranks")) return;
  fill(byId("rank-line"), data.ranks.map((_, i) => String(i)), "0", data.ranks.map((line) => `${line.condition}, ${inWords(line.metric)}`));
  byId("rank-line").addEventListener("change", drawRanks);
}
