"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const unique = (values) => [...new Set(values)];

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // Plotly reads some HTML in its texts; names of files and classes are never HTML.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const tone = (index) => variable(`--c${((index % 8) + 8) % 8}`);
  const encoderTone = (name) => tone(data.encoders.indexOf(name));
  const percent = (share) => `${Math.round(100 * share)} %`;

  // Long class names break after an underscore, hyphen or slash rather than anywhere.
  const breakable = (text) => text.split(/(?<=[_\-/])/).flatMap((part) => [part, element("wbr")]);

  function fill(select, values, chosen) {
    select.replaceChildren(...values.map((value) => element("option", { value }, value)));
    if (values.includes(chosen)) select.value = chosen;
  }

  // Tables ---------------------------------------------------------------------------------------------------------

  function sortTable(button) {
    const heading = button.closest("th");
    const column = [...heading.parentNode.children].indexOf(heading);
    const body = heading.closest("table").tBodies[0];
    const numeric = heading.classList.contains("number");
    const current = heading.getAttribute("aria-sort");
    const first = numeric ? "descending" : "ascending";
    const direction = current === "none" ? first : current === "ascending" ? "descending" : "ascending";
    // A cell that spans columns shifts its followers, so a row is read by column, not by position.
    const key = (row) => {
      let at = 0;
      for (const cell of row.cells) {
        if (at === column) return cell.dataset.sort ?? cell.textContent.trim();
        at += cell.colSpan;
      }
      return "";
    };
    const rows = [...body.rows].map((row, place) => ({ row, place, key: key(row) }));
    const sign = direction === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      if ((a.key === "") !== (b.key === "")) return a.key === "" ? 1 : -1;
      const order = numeric ? Number(a.key) - Number(b.key) : a.key.localeCompare(b.key, undefined, { numeric: true });
      return sign * (order || 0) || a.place - b.place;
    });
    all("th[aria-sort]", heading.parentNode).forEach((other) => other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", direction);
    body.append(...rows.map((entry) => entry.row));
  }

  function showReference() {
    const chosen = byId("reference").value;
    for (const row of all("tr[data-reference]")) {
      row.hidden = chosen ? row.dataset.reference !== chosen : !("best" in row.dataset);
    }
  }

  // Figures --------------------------------------------------------------------------------------------------------

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
      const level = panel.levels.length === 1 ? panel.levels[0] : null;
      const mark = level === null ? {} : dashed(level, `${panel.level_name} ${level.toFixed(2)}`);
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

  // Confusion ------------------------------------------------------------------------------------------------------

  function backdrop(share) {
    const [r, g, b] = variable("--heat").split(",").map(Number);
    const card = variable("--card");
    const base = [1, 3, 5].map((at) => parseInt(card.slice(at, at + 2), 16));
    const mixed = [r, g, b].map((value, i) => Math.round(base[i] + (value - base[i]) * share));
    const linear = mixed.map((value) => ((value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    // Of black and white one always has a contrast of at least 4.5.
    return { background: `rgb(${mixed})`, color: light > 0.179 ? "#000" : "#fff" };
  }

  function drawMatrix(parent, encoder) {
    const task = byId("confusion-task").value;
    const condition = byId("confusion-condition").value;
    const entry = data.confusion.find((e) => e.encoder === encoder && e.task === task && e.condition === condition);
    if (!entry) {
      parent.replaceChildren(element("p", { class: "empty" }, `No predictions of ${encoder} on ${task} with ${condition}.`));
      return;
    }
    const totals = entry.counts.map((row) => row.reduce((a, b) => a + b, 0));
    const head = element("tr", {}, element("td", {}), ...entry.classes.map((name) => element("th", { scope: "col" }, ...breakable(name))));
    head.cells[0].style.height = "auto";
    const over = element("tr", {}, element("td", {}), element("th", { colspan: entry.classes.length, scope: "colgroup", class: "over" }, "predicted"));
    over.cells[0].style.height = "auto";
    const rows = entry.counts.map((row, i) => element("tr", {}, element("th", { scope: "row" }, ...breakable(entry.classes[i])), ...row.map((count, j) => {
      const share = totals[i] ? count / totals[i] : 0;
      const cell = element("td", { title: `${count} of ${totals[i]} images of ${entry.classes[i]} predicted as ${entry.classes[j]}` }, totals[i] ? percent(share) : "–", element("small", {}, String(count)));
      Object.assign(cell.style, backdrop(share));
      return cell;
    })));
    const note = entry.seeds > 1 ? `share and count, ${entry.seeds} seeds summed` : "share and count";
    const table = element("table", { class: entry.classes.length > 6 ? "matrix dense" : "matrix" },
      element("caption", {}, `${encoder}: ${note}`), element("thead", {}, over, head), element("tbody", {}, ...rows));
    parent.replaceChildren(table);
  }

  function drawMatrices() {
    for (const side of ["first", "second"]) drawMatrix(byId(`matrix-${side}`), byId(`confusion-${side}`).value);
  }

  function startConfusion() {
    if (!data.confusion.length) return;
    const tasks = unique(data.confusion.map((e) => e.task));
    const conditions = () => unique(data.confusion.filter((e) => e.task === byId("confusion-task").value).map((e) => e.condition));
    const encoders = unique(data.confusion.map((e) => e.encoder));
    fill(byId("confusion-task"), tasks);
    fill(byId("confusion-condition"), conditions());
    fill(byId("confusion-first"), encoders, encoders[0]);
    fill(byId("confusion-second"), encoders, encoders[1] ?? encoders[0]);
    if (encoders.length < 2) byId("confusion-second").closest(".panel").hidden = true;
    byId("confusion-task").addEventListener("change", () => {
      fill(byId("confusion-condition"), conditions(), byId("confusion-condition").value);
      drawMatrices();
    });
    for (const id of ["confusion-condition", "confusion-first", "confusion-second"]) byId(id).addEventListener("change", drawMatrices);
  }

  // Embedding map --------------------------------------------------------------------------------------------------

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

  // Page -----------------------------------------------------------------------------------------------------------

  function startCopying() {
    for (const button of all(".copy")) {
      button.addEventListener("click", async () => {
        const code = button.parentNode.querySelector("code");
        try {
          await navigator.clipboard.writeText(code.textContent);
          button.textContent = "Copied";
        } catch {
          // Some browsers keep the clipboard from pages on disk: select the text, so that one key copies it.
          getSelection().selectAllChildren(code);
          button.textContent = "Selected";
        }
        setTimeout(() => (button.textContent = "Copy"), 1600);
      });
    }
  }

  function startNavigation() {
    const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
    const mark = () => {
      const sections = all("main > section");
      const current = sections.filter((section) => section.getBoundingClientRect().top < 160).pop() ?? sections[0];
      for (const [id, link] of links) {
        link.classList.toggle("here", id === current.id);
        if (id === current.id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    };
    addEventListener("scroll", mark, { passive: true });
    mark();
  }

  function drawAll() {
    drawBars();
    drawCurves();
    drawMaps();
    if (data.confusion.length) drawMatrices();
  }

  all(".sort").forEach((button) => button.addEventListener("click", () => sortTable(button)));
  byId("metric").addEventListener("change", () => {
    all("[data-metric]").forEach((part) => (part.hidden = part.dataset.metric !== byId("metric").value));
    drawBars();
  });
  byId("reference")?.addEventListener("change", showReference);
  startConfusion();
  startMaps();
  startCopying();
  startNavigation();
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
