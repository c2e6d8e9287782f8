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

// The tables come first, then one figure after another, so that the page answers while it draws.
function drawAll() {
  const steps = [drawBoards, drawBars, drawDifferences, drawEfficiency, drawRanks, drawShift, drawMatrices, drawRoc, drawMaps, drawTiles, drawNuclei, drawCurves];
  const next = () => {
    const step = steps.shift();
    if (!step) {
      document.documentElement.dataset.ready = "";
      return;
    }
    step();
    setTimeout(next, 0);
  };
  next();
}

byId("metric").addEventListener("change", () => {
  for (const step of [drawBoards, drawBars, drawEfficiency]) step();
});
startSprites();
startBoards();
startDifferences();
startEfficiency();
startRanks();
startShift();
startConfusion();
startRoc();
startMaps();
startTiles();
startNuclei();
startCopying();
startNavigation();
drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
