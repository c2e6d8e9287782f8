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
