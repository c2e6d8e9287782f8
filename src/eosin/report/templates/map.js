const symbols = [
  ["circle", "M7 2a5 5 0 1 0 .01 0z"], ["diamond", "M7 1l6 6-6 6-6-6z"], ["square", "M2 2h10v10H2z"], ["triangle-up", "M7 1.5l6 10.5H1z"],
  ["cross", "M5 1h4v4h4v4H9v4H5V9H1V5h4z"], ["triangle-down", "M7 12.5l6-10.5H1z"], ["x", "M3.5 1L7 4.5 10.5 1 13 3.5 9.5 7l3.5 3.5-2.5 2.5L7 9.5 3.5 13 1 10.5 4.5 7 1 3.5z"], ["hexagon", "M7 1l5 3v6l-5 3-5-3V4z"],
];
const symbol = (index) => symbols[(index + Math.floor(index / COLORS)) % symbols.length];
const hiddenClasses = new Set();
const sides = ["first", "second"];
const atPoint = { first: -1, second: -1 };

const mapPlot = (side) => byId(`map-${side}`);
const cardOf = (side) => mapPlot(side).parentNode.querySelector(".tile-card");
const mapOf = (side) => data.embedding.maps.find((e) => e.task === byId("map-task").value && e.encoder === byId(`map-${side}-encoder`).value);
const classesOf = (values) => unique(values.filter((value) => value !== null)).sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
const MOST_NAMED = 24;
const GROUPINGS = { patient: "patient", slide: "slide" };

// What the tiles can be colored by: names, or numbers on a scale.
function colorings(map) {
  const found = { label: { title: "class", names: map.label }, predicted: { title: "predicted class", names: map.predicted } };
  if (map.predicted.some((name) => name !== null)) {
    found.right = { title: "right or wrong", names: map.predicted.map((name, i) => (name === null ? null : name === map.label[i] ? "✓ recognized" : "✗ taken for another")) };
  } else delete found.predicted;
  if (map.group.some((name) => name !== null)) found.group = { title: GROUPINGS[map.grouping] ?? "group", names: map.group };
  if (map.density) found.density = { title: "stain: optical density", numbers: map.density };
  if (map.red_share) found.red_share = { title: "stain: hematoxylin (red share)", numbers: map.red_share };
  return found;
}

const coloringOf = (map) => colorings(map)[byId("map-color").value] ?? colorings(map).label;
const nameOf = (map, index) => coloringOf(map).names?.[index] ?? null;
const LAYOUTS = { tsne: "t-SNE", pca: "principal components", umap: "UMAP" };
const layoutOf = (map) => (map[`${byId("map-layout").value}_x`] ? byId("map-layout").value : "tsne");
const across = (map) => map[`${layoutOf(map)}_x`] ?? map.x;
const upward = (map) => map[`${layoutOf(map)}_y`] ?? map.y;

function pixels(side, map, index) {
  const plot = mapPlot(side);
  const { xaxis, yaxis } = plot._fullLayout;
  return [plot.offsetLeft + xaxis._offset + xaxis.l2p(across(map)[index]), plot.offsetTop + yaxis._offset + yaxis.l2p(upward(map)[index])];
}

function hideCards() {
  for (const side of sides) {
    cardOf(side).hidden = true;
    mapPlot(side).parentNode.querySelector(".ring")?.remove();
  }
}

function ring(side, map, index) {
  const [x, y] = pixels(side, map, index);
  const circle = element("span", { class: "ring", "aria-hidden": "true" });
  circle.style.left = `${x}px`;
  circle.style.top = `${y}px`;
  mapPlot(side).parentNode.append(circle);
}

function judgement(map, index) {
  if (map.predicted[index] === null) return [];
  const right = map.predicted[index] === map.label[index];
  return [element("div", { class: right ? "right" : "wrong" }, right ? "✓ recognized" : `✗ taken for ${map.predicted[index]}`)];
}

function showCard(side, map, index) {
  hideCards();
  const card = cardOf(side);
  const shown = map.thumbnail[index] < 0 ? [] : [picture(map.task, map.thumbnail[index], map.name[index], 128)];
  const coloring = coloringOf(map);
  const stain = coloring.numbers && coloring.numbers[index] !== null ? [element("div", {}, `${coloring.title} ${fixed(coloring.numbers[index], 2)}`)] : [];
  const group = map.group[index] === null ? [] : [element("div", { class: "name" }, `${GROUPINGS[map.grouping] ?? "group"} ${map.group[index]}`)];
  card.replaceChildren(...shown, element("b", {}, map.label[index]), ...judgement(map, index), ...stain, ...group, element("div", { class: "name" }, map.name[index]));
  card.hidden = false;
  const [x, y] = pixels(side, map, index);
  const room = card.parentNode;
  const left = x + 18 + card.offsetWidth > room.clientWidth ? x - 18 - card.offsetWidth : x + 18;
  const top = Math.min(y - 30, room.clientHeight - card.offsetHeight - 8);
  card.style.left = `${Math.max(left, 4)}px`;
  card.style.top = `${Math.max(top, 4)}px`;
  ring(side, map, index);
  const other = sides.find((name) => name !== side);
  const twin = mapPlot(other).closest(".panel").hidden ? undefined : mapOf(other);
  const same = twin ? twin.name.indexOf(map.name[index]) : -1;
  if (same >= 0 && !hiddenClasses.has(nameOf(twin, same))) ring(other, twin, same);
}

function mapTraces(map) {
  const coloring = coloringOf(map);
  const x = across(map), y = upward(map);
  const trace = (rows, marker, visible = true) => ({
    type: "scatter", mode: "markers", visible, x: rows.map((i) => x[i]), y: rows.map((i) => y[i]), customdata: rows, hoverinfo: "none",
    marker: { size: 8, opacity: 0.85, line: { width: 0.8, color: variable("--card") }, ...marker },
  });
  if (coloring.numbers) {
    const rows = coloring.numbers.map((value, i) => (value === null ? -1 : i)).filter((i) => i >= 0);
    const scale = ["--scale-low", "--scale-middle", "--scale-high"].map((name, i) => [i / 2, variable(name)]);
    return [trace(rows, { color: rows.map((i) => coloring.numbers[i]), colorscale: scale, showscale: true, colorbar: { thickness: 12, len: 0.7, outlinewidth: 0, tickfont: { size: 11 }, nticks: 5 } })];
  }
  return classesOf(coloring.names).map((name, number) => {
    const rows = coloring.names.map((label, i) => (label === name ? i : -1)).filter((i) => i >= 0);
    const shape = symbol(number)[0];
    return trace(rows, { color: tone(number), symbol: shape, size: shape.startsWith("triangle") ? 10 : 8 }, !hiddenClasses.has(name));
  });
}

function drawMap(side) {
  const plot = mapPlot(side);
  const map = mapOf(side);
  atPoint[side] = -1;
  if (!map) {
    Plotly.purge(plot);
    plot.replaceChildren(element("p", { class: "empty" }, "No map of this task is stored for this encoder."));
    return;
  }
  if (!plot.classList.contains("js-plotly-plot")) plot.replaceChildren();
  const traces = mapTraces(map);
  const bare = { visible: false };
  draw(plot, traces, layout({ hovermode: "closest", hoverdistance: 12, xaxis: bare, yaxis: { ...bare, scaleanchor: "x" } }));
  plot.removeAllListeners("plotly_hover");
  plot.removeAllListeners("plotly_unhover");
  plot.on("plotly_hover", (event) => showCard(side, map, event.points[0].customdata));
  plot.on("plotly_unhover", hideCards);
}

function drawMaps() {
  if (!byId("maps")) return;
  hideCards();
  const map = mapOf("first") ?? mapOf("second");
  byId("map-note").textContent = "";
  byId("map-legend").replaceChildren();
  for (const side of sides) drawMap(side);
  if (!map) return;
  const coloring = coloringOf(map);
  const names = coloring.names ? classesOf(coloring.names) : [];
  if (names.length <= MOST_NAMED) drawMapLegend(names, coloring);
  const shown = map.of > map.x.length ? `${map.x.length} of ${map.of} test tiles` : `${map.x.length} test tiles`;
  const judged = map.predicted_by ? ` Predictions are those of ${map.predicted_by}${isVote(map.predicted_by) ? ": what most draws gave" : ""}.` : "";
  const flat = layoutOf(map) === "pca";
  const named = { pca: "first two principal components of the standardized features", umap: "UMAP, 15 neighbors" };
  const method = named[layoutOf(map)] ?? map.method ?? "two dimensions";
  const meaning = flat ? "" : " The axes, and distances between far groups, carry no meaning.";
  const many = names.length > MOST_NAMED ? ` ${names.length} ${coloring.title}s share twelve colors and eight shapes.` : "";
  const stain = coloring.numbers ? " Optical density is -log10 of the light that a tile lets through; hematoxylin absorbs red light, eosin hardly." : "";
  byId("map-note").textContent = `${shown}; ${method}; seed ${map.seed ?? "?"}.${judged}${meaning}${many}${stain}`;
}

function drawMapLegend(names, coloring) {
  byId("map-legend").replaceChildren(...names.map((name, number) => {
    const count = coloring.names.filter((label) => label === name).length;
    const button = element("button", { type: "button", class: "toggle", "aria-pressed": String(!hiddenClasses.has(name)) }, name, element("span", { class: "quiet" }, ` ${count}`));
    button.insertAdjacentHTML("afterbegin", `<svg viewBox="0 0 14 14" aria-hidden="true"><path d="${symbol(number)[1]}" fill="${tone(number)}"/></svg>`);
    button.addEventListener("click", () => {
      if (!hiddenClasses.delete(name)) hiddenClasses.add(name);
      drawMaps();
      byId("map-legend").querySelectorAll("button")[number].focus();
    });
    return element("li", {}, button);
  }));
}

function stepThrough(side, event) {
  if (event.key === "Escape") hideCards();
  const map = mapOf(side);
  if (!map || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  event.preventDefault();
  const coloring = coloringOf(map), x = across(map);
  const seen = (i) => (coloring.numbers ? coloring.numbers[i] !== null : coloring.names[i] !== null && !hiddenClasses.has(coloring.names[i]));
  const rows = map.label.map((_, i) => i).filter(seen).sort((a, b) => x[a] - x[b]);
  if (!rows.length) return;
  const step = event.key === "ArrowRight" ? 1 : -1;
  const at = rows.indexOf(atPoint[side]);
  atPoint[side] = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : (at + step + rows.length) % rows.length];
  showCard(side, map, atPoint[side]);
}

function startMaps() {
  if (!byId("maps")) return;
  const encoders = unique(data.embedding.maps.map((e) => e.encoder));
  fill(byId("map-task"), unique(data.embedding.maps.map((e) => e.task)));
  fill(byId("map-first-encoder"), encoders, encoders[0]);
  fill(byId("map-second-encoder"), encoders, encoders[1] ?? encoders[0]);
  if (encoders.length < 2) mapPlot("second").closest(".panel").hidden = true;
  const kinds = new Map(data.embedding.maps.flatMap((map) => Object.entries(colorings(map)).map(([key, coloring]) => [key, coloring.title])));
  fill(byId("map-color"), [...kinds.keys()], "label", [...kinds.values()]);
  const layouts = Object.keys(LAYOUTS).filter((key) => key === "tsne" || data.embedding.maps.some((map) => map[`${key}_x`]));
  fill(byId("map-layout"), layouts, "tsne", layouts.map((key) => LAYOUTS[key]));
  byId("map-layout").closest(".picker").hidden = layouts.length < 2;
  for (const id of ["map-color", "map-layout"]) byId(id).addEventListener("change", () => {
    hiddenClasses.clear();
    drawMaps();
  });
  byId("map-task").addEventListener("change", () => {
    hiddenClasses.clear();
    drawMaps();
  });
  for (const side of sides) {
    byId(`map-${side}-encoder`).addEventListener("change", drawMaps);
    mapPlot(side).addEventListener("keydown", (event) => stepThrough(side, event));
    mapPlot(side).addEventListener("blur", hideCards);
  }
}
