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
