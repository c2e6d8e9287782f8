const symbols = [
  ["circle", "M7 2a5 5 0 1 0 .01 0z"], ["diamond", "M7 1l6 6-6 6-6-6z"], ["square", "M2 2h10v10H2z"], ["triangle-up", "M7 1.5l6 10.5H1z"],
  ["cross", "M5 1h4v4h4v4H9v4H5V9H1V5h4z"], ["triangle-down", "M7 12.5l6-10.5H1z"], ["x", "M3.5 1L7 4.5 10.5 1 13 3.5 9.5 7l3.5 3.5-2.5 2.5L7 9.5 3.5 13 1 10.5 4.5 7 1 3.5z"], ["hexagon", "M7 1l5 3v6l-5 3-5-3V4z"],
];
const symbol = (index) => symbols[(index + Math.floor(index / 8)) % 8];
const hiddenClasses = new Set();
const sides = ["first", "second"];
const atPoint = { first: -1, second: -1 };

const mapPlot = (side) => byId(`map-${side}`);
const cardOf = (side) => mapPlot(side).parentNode.querySelector(".tile-card");
const mapOf = (side) => data.embedding.maps.find((e) => e.task === byId("map-task").value && e.encoder === byId(`map-${side}-encoder`).value);
const classesOf = (map) => unique(map.label).sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));

function pixels(side, map, index) {
  const plot = mapPlot(side);
  const { xaxis, yaxis } = plot._fullLayout;
  return [plot.offsetLeft + xaxis._offset + xaxis.l2p(map.x[index]), plot.offsetTop + yaxis._offset + yaxis.l2p(map.y[index])];
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

function picture(map, index) {
  const sprite = data.embedding.sprites[map.task];
  const place = map.thumbnail[index];
  if (!sprite || place < 0) return [];
  const shown = 128;
  const tile = element("div", { class: "picture", role: "img", "aria-label": `tile ${map.name[index]}` });
  Object.assign(tile.style, {
    backgroundImage: `url(${sprite.src})`,
    backgroundSize: `${sprite.columns * shown}px ${Math.ceil(sprite.count / sprite.columns) * shown}px`,
    backgroundPosition: `-${(place % sprite.columns) * shown}px -${Math.floor(place / sprite.columns) * shown}px`,
  });
  return [tile];
}

function judgement(map, index) {
  if (map.predicted[index] === null) return [];
  const right = map.predicted[index] === map.label[index];
  return [element("div", { class: right ? "right" : "wrong" }, right ? "✓ recognized" : `✗ taken for ${map.predicted[index]}`)];
}

function showCard(side, map, index) {
  hideCards();
  const card = cardOf(side);
  card.replaceChildren(...picture(map, index), element("b", {}, map.label[index]), ...judgement(map, index), element("div", { class: "name" }, map.name[index]));
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
  if (same >= 0 && !hiddenClasses.has(twin.label[same])) ring(other, twin, same);
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
  const traces = classesOf(map).map((name, number) => {
    const rows = map.label.map((label, i) => (label === name ? i : -1)).filter((i) => i >= 0);
    return {
      type: "scatter",
      mode: "markers",
      visible: !hiddenClasses.has(name),
      x: rows.map((i) => map.x[i]),
      y: rows.map((i) => map.y[i]),
      customdata: rows,
      hoverinfo: "none",
      marker: { color: tone(number), symbol: symbol(number)[0], size: symbol(number)[0].startsWith("triangle") ? 10 : 8, opacity: 0.85, line: { width: 0.8, color: variable("--card") } },
    };
  });
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
  drawMapLegend(map);
  const shown = map.of > map.x.length ? `${map.x.length} of ${map.of} test tiles` : `${map.x.length} test tiles`;
  const judged = map.predicted_by ? ` Predictions are those of ${map.predicted_by}.` : "";
  byId("map-note").textContent = `${shown}; ${map.method ?? "two dimensions"}; seed ${map.seed ?? "?"}.${judged} The axes, and distances between far groups, carry no meaning.`;
}

function drawMapLegend(map) {
  byId("map-legend").replaceChildren(...classesOf(map).map((name, number) => {
    const count = map.label.filter((label) => label === name).length;
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
  const rows = map.label.map((_, i) => i).filter((i) => !hiddenClasses.has(map.label[i])).sort((a, b) => map.x[a] - map.x[b]);
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
