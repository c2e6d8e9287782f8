const MOST_BOXES = 12;
const DOTS_UP_TO = 60;
// Outlines of both sides: color says whose, filling that the nucleus has no match.
const LAYERS = [["truth", "true, found"], ["missed", "true, missed"], ["found", "predicted, matched"], ["false", "predicted, no match"]];
const LAYER_CHOICES = [["both", "truth and prediction"], ["truth", "truth only"], ["prediction", "prediction only"], ["none", "none"]];

function nucleiCells() {
  const task = byId("nuclei-task").value, condition = byId("nuclei-condition").value;
  return data.nuclei.cells.filter((cell) => cell.task === task && cell.condition === condition);
}

function boxTrace(cell) {
  const color = encoderTone(cell.encoder);
  return {
    type: "box", name: plain(cell.encoder), x: cell.values, orientation: "h", boxpoints: cell.images <= DOTS_UP_TO ? "all" : false, jitter: 0.5, pointpos: 0,
    line: { color, width: 1.6 }, fillcolor: faded(color, 0.16), marker: { color, size: 4.5, opacity: 0.75 }, hoverinfo: "x+name",
  };
}

function curveTrace(cell) {
  const color = encoderTone(cell.encoder);
  return {
    type: "scatter", mode: "lines+markers", x: data.nuclei.thresholds, y: cell.curve, line: { color, width: 2 }, marker: { color, size: 6, symbol: symbol(encoderNumber.get(cell.encoder))[0] },
    hovertemplate: "<b>%{y:.3f}</b>" + extra(cell.encoder),
  };
}

function drawNuclei() {
  if (!byId("nuclei")) return;
  const median = (cell) => cell.values[Math.floor(cell.values.length / 2)];
  const every = nucleiCells().filter((cell) => cell.images);
  const kept = new Set(leading(every.map((cell) => cell.encoder), (name) => median(every.find((cell) => cell.encoder === name)), MOST_BOXES));
  const cells = every.filter((cell) => kept.has(cell.encoder));
  const parent = byId("nuclei-plots");
  parent.replaceChildren();
  const task = byId("nuclei-task").value;
  const boxes = frame(parent, "PQ of each test image", "box: the middle half and the median; whiskers: 1.5 times the box at most", Math.max(240, 70 + 38 * cells.length), `PQ of the test images of ${task} by encoder`);
  const curves = frame(parent, "PQ over the IoU that makes a match", "mean over images; the PQ of the leaderboard is that at 0.5", Math.max(240, 70 + 38 * cells.length), `PQ on ${task} over the IoU of a match`);
  byId("nuclei-legend").replaceChildren(...legendOf(cells.map((cell) => cell.encoder)));
  draw(boxes, [...cells].reverse().map(boxTrace), layout({ xaxis: { range: [-0.02, 1.02], tickformat: ".1f", nticks: 6 }, yaxis: { showgrid: false, showticklabels: false } }));
  draw(curves, cells.map(curveTrace), layout({ hovermode: "x unified", xaxis: { tickvals: data.nuclei.thresholds.filter((_, place) => place % 2 === 0), showgrid: false }, yaxis: { rangemode: "tozero", nticks: 6, tickformat: ".2f" } }));
  const seeds = unique(cells.map((cell) => cell.seeds));
  byId("nuclei-note").textContent = `${unique(cells.map((cell) => cell.images)).join(" or ")} test images with nuclei.${seeds.some((count) => count > 1) ? ` Values are means over ${seeds.join(" or ")} seeds.` : ""}${leftOut(cells.length, every.length)}`;
  drawNucleiGallery();
}

function overlay(image) {
  const svg = drawn("svg", { class: "overlay", viewBox: `0 0 ${image.width} ${image.height}`, role: "img", "aria-label": `${image.name}: ${image.tp} nuclei found, ${image.fn} missed, ${image.fp} predicted without a match` });
  svg.append(drawn("image", { href: data.nuclei.pictures[image.picture], width: image.width, height: image.height }));
  for (const [name] of LAYERS) if (image[name]) svg.append(drawn("path", { class: `outline ${name}`, d: image[name] }));
  return svg;
}

function nucleiFigure(image) {
  return element("li", { class: "specimen" }, overlay(image),
    element("p", {}, element("b", {}, `PQ ${fixed(image.pq, 2)}`), element("span", { class: "quiet" }, ` AJI ${fixed(image.aji, 2)} · Dice ${fixed(image.dice, 2)}`)),
    element("p", {}, `${image.tp} found, ${image.fn} missed, ${image.fp} without a match`),
    element("p", { class: "quiet name" }, ...breakable(image.name), image.part ? ", a part" : ""));
}

function drawNucleiGallery() {
  const parent = byId("nuclei-gallery");
  const task = byId("nuclei-task").value, encoder = byId("nuclei-encoder").value;
  const protocol = byId("nuclei-condition").value.split(", ")[0];
  const gallery = data.nuclei.galleries.find((entry) => entry.task === task && entry.encoder === encoder && entry.condition.split(", ")[0] === protocol);
  parent.replaceChildren();
  parent.dataset.layers = byId("nuclei-layers").value;
  const note = byId("nuclei-gallery-note");
  if (!gallery || !gallery.images.length) {
    const why = data.nuclei.left_out ? "are left out, so that the page stays small" : "are stored";
    parent.append(element("p", { class: "empty" }, `No images of ${encoder} on ${task} with ${protocol} ${why}.`));
    note.textContent = "";
    return;
  }
  for (const [kind, title] of [["worst", "Worst"], ["best", "Best"]]) {
    const images = gallery.images.filter((image) => image.kind === kind);
    if (images.length) parent.append(element("h4", {}, title), element("ul", { class: "specimens", "aria-label": `${title} test images of ${encoder} on ${task}` }, ...images.map(nucleiFigure)));
  }
  note.textContent = `${gallery.condition}, seed ${gallery.seed}, by PQ of the whole image. A match is an IoU above 0.5.${gallery.images.some((image) => image.part) ? " Of large images the part with most errors is shown (worst) or most matches (best)." : ""}`;
}

function startNuclei() {
  if (!byId("nuclei")) return;
  const { cells, galleries } = data.nuclei;
  const offer = () => {
    const task = byId("nuclei-task").value;
    fill(byId("nuclei-condition"), unique(cells.filter((cell) => cell.task === task).map((cell) => cell.condition)), byId("nuclei-condition").value);
    const encoders = unique([...galleries, ...cells].filter((entry) => entry.task === task).map((entry) => entry.encoder));
    fill(byId("nuclei-encoder"), encoders, byId("nuclei-encoder").value);
  };
  fill(byId("nuclei-task"), unique(cells.map((cell) => cell.task)));
  byId("nuclei-task").closest(".picker").hidden = unique(cells.map((cell) => cell.task)).length < 2;
  fill(byId("nuclei-layers"), LAYER_CHOICES.map((entry) => entry[0]), "both", LAYER_CHOICES.map((entry) => entry[1]));
  document.querySelector(".outline-legend").replaceChildren(...LAYERS.map(([name, label]) => element("li", {}, drawn("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, drawn("path", { class: `outline ${name}`, d: "M2 4h3v-2h7v3h2v6h-2v2h-6v-1h-4z" })), label)));
  offer();
  byId("nuclei-task").addEventListener("change", () => { offer(); drawNuclei(); });
  byId("nuclei-condition").addEventListener("change", drawNuclei);
  byId("nuclei-encoder").addEventListener("change", drawNucleiGallery);
  byId("nuclei-layers").addEventListener("change", drawNucleiGallery);
}
