// Maps and galleries name tiles by their number in the table of their task; here each gets what the table knows of it.
function unfoldTiles() {
  const { tiles, maps, neighbors, errors } = data.embedding;
  const word = (task, number) => (number === null || number === undefined ? null : tiles[task].words[number]);
  const describe = (task, number) => ({ name: tiles[task].name[number], label: word(task, tiles[task].label[number]), thumbnail: tiles[task].thumbnail[number] });
  for (const map of maps) {
    const table = tiles[map.task];
    map.name = map.tile.map((number) => table.name[number]);
    map.thumbnail = map.tile.map((number) => table.thumbnail[number]);
    map.label = map.tile.map((number) => word(map.task, table.label[number]));
    map.group = map.tile.map((number) => word(map.task, table.group[number]));
    map.predicted = map.predicted.map((number) => word(map.task, number));
    for (const fact of ["density", "red_share"]) if (table[fact].some((value) => value !== null)) map[fact] = map.tile.map((number) => table[fact][number]);
  }
  for (const entry of neighbors) entry.tiles = entry.rows.map(([number, query, rank, cosine]) => ({ ...describe(entry.task, number), query, rank, cosine }));
  for (const entry of errors) entry.tiles = entry.rows.map(([number, predicted, p, truth]) => ({ ...describe(entry.task, number), predicted: word(entry.task, predicted), p, truth }));
}

// Each task's pictures are one image; a class of the style sheet holds it once for all tiles.
const spriteTasks = Object.keys(data.embedding.tiles);
const spriteOf = (task) => data.embedding.tiles[task]?.sprite;

function startSprites() {
  unfoldTiles();
  const rules = spriteTasks.map((task, i) => (spriteOf(task) ? `.sprite-${i} { background-image: url("${spriteOf(task).src}"); }` : ""));
  document.head.append(element("style", {}, rules.join("\n")));
}

function picture(task, place, name, side) {
  const sprite = spriteOf(task);
  const tile = element("div", { class: "picture", role: "img", "aria-label": `tile ${name}` });
  Object.assign(tile.style, { width: `${side}px`, height: `${side}px` });
  if (!sprite || place < 0) {
    tile.classList.add("absent");
    tile.setAttribute("aria-label", `tile ${name}, picture left out`);
    return tile;
  }
  tile.classList.add(`sprite-${spriteTasks.indexOf(task)}`);
  tile.style.backgroundSize = `${sprite.columns * side}px ${Math.ceil(sprite.count / sprite.columns) * side}px`;
  tile.style.backgroundPosition = `-${(place % sprite.columns) * side}px -${Math.floor(place / sprite.columns) * side}px`;
  return tile;
}

function tileFigure(task, tile, side, lines, kind = "") {
  return element("li", { class: `tile ${kind}`, title: tile.name }, picture(task, tile.thumbnail, tile.name, side), ...lines);
}

function drawNeighbors() {
  const parent = byId("neighbors");
  if (!parent) return;
  const task = byId("tiles-task").value, encoder = byId("tiles-encoder").value;
  const entry = data.embedding.neighbors.find((gallery) => gallery.task === task && gallery.encoder === encoder);
  parent.replaceChildren();
  if (!entry) {
    parent.append(element("p", { class: "empty" }, `No neighbors of ${encoder} on ${task} are stored.`));
    return;
  }
  for (const [, tiles] of groupBy(entry.tiles, (tile) => tile.query)) {
    const query = tiles.find((tile) => tile.rank === 0);
    const near = tiles.filter((tile) => tile.rank > 0);
    const same = near.filter((tile) => tile.label === query.label).length;
    const row = element("ul", { class: "tiles", "aria-label": `A tile of ${query.label} and its nearest training tiles, ${same} of ${near.length} of its class` },
      tileFigure(task, query, 64, [element("b", {}, ...breakable(query.label)), element("span", { class: "quiet" }, "asked")], "query"),
      ...near.map((tile) => {
        const right = tile.label === query.label;
        return tileFigure(task, tile, 64, [element("span", { class: right ? "right" : "wrong" }, `${right ? "✓" : "✗"} `, ...breakable(tile.label)), element("span", { class: "quiet" }, `cosine ${fixed(tile.cosine, 2)}`)], right ? "same" : "other");
      }));
    parent.append(row);
  }
}

function drawErrors() {
  const parent = byId("errors");
  if (!parent) return;
  const task = byId("tiles-task").value, encoder = byId("tiles-encoder").value, protocol = byId("tiles-protocol").value;
  const entry = data.embedding.errors.find((gallery) => gallery.task === task && gallery.encoder === encoder && gallery.predicted_by === protocol);
  parent.replaceChildren();
  if (!entry || !entry.tiles.length) {
    parent.append(element("p", { class: "empty" }, entry ? `${protocol} took no test tile of ${task} for another class.` : `No errors of ${encoder} on ${task} under ${protocol} are stored.`));
    byId("errors-note").textContent = "";
    return;
  }
  parent.append(element("ul", { class: "tiles errors", "aria-label": `Surest errors of ${encoder} on ${task} under ${protocol}` }, ...entry.tiles.map((tile) => tileFigure(task, tile, 88, [
    element("span", {}, element("span", { class: "quiet" }, "is "), element("b", {}, ...breakable(tile.label))),
    element("span", { class: "wrong" }, "✗ ", ...breakable(tile.predicted), ` ${fixed(tile.p, 2)}`),
    element("span", { class: "quiet" }, `truth ${fixed(tile.truth, 2)}`),
  ]))));
  byId("errors-note").textContent = `The ${entry.tiles.length} most certain of ${entry.wrong} errors on ${entry.test} test tiles. ${isVote(protocol) ? "The number after a class is the share of the draws that gave it; an error is what most of them gave." : "The number after a class is the probability given to it."}`;
}

function drawTiles() {
  if (!byId("tiles")) return;
  drawNeighbors();
  drawErrors();
}

function startTiles() {
  if (!byId("tiles")) return;
  const { neighbors, errors } = data.embedding;
  const both = [...neighbors, ...errors];
  const ofTask = (key, list) => unique(list.filter((entry) => entry.task === byId("tiles-task").value).map((entry) => entry[key]));
  const offer = () => {
    fill(byId("tiles-encoder"), ofTask("encoder", both), byId("tiles-encoder").value);
    const protocols = ofTask("predicted_by", errors).sort((a, b) => isVote(a) - isVote(b));
    fill(byId("tiles-protocol"), protocols, byId("tiles-protocol").value);
    byId("tiles-protocol").closest(".picker").hidden = protocols.length < 2;
  };
  fill(byId("tiles-task"), unique(both.map((entry) => entry.task)));
  offer();
  byId("tiles-task").addEventListener("change", () => { offer(); drawTiles(); });
  byId("tiles-encoder").addEventListener("change", drawTiles);
  byId("tiles-protocol").addEventListener("change", drawErrors);
}
