// The search page shows an excerpt of each result, which it fetches; a browser fetches nothing from file://.
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
// The theme lets the keyboard reach what scrolls, when the page loads or changes its width; so it must when a fold opens.
document.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")), true);
// Paper is white: a page that is read in the dark is printed in the light, and what is folded on it is printed open.
let beforePrinting;
window.addEventListener("beforeprint", () => {
  const page = document.documentElement, folded = [...document.querySelectorAll("main details:not([open], .module-source)")];
  beforePrinting = { theme: page.dataset.theme, folded };
  page.dataset.theme = "light";
  folded.forEach((fold) => (fold.open = true));
});
window.addEventListener("afterprint", () => {
  document.documentElement.dataset.theme = beforePrinting.theme;
  beforePrinting.folded.forEach((fold) => (fold.open = false));
});
// The glyphs of a formula are drawn by a style sheet, which a browser does not copy: a formula is copied as its TeX.
window.addEventListener("load", () =>
  window.MathJax?.startup?.promise.then(() => {
    for (const { typesetRoot, math, display } of MathJax.startup.document.math) {
      typesetRoot.dataset.tex = display ? `$$${math}$$` : `$${math}$`;
    }
  })
);
document.addEventListener("copy", (event) => {
  const selected = getSelection();
  const copied = document.createElement("div");
  if (selected.rangeCount) copied.append(selected.getRangeAt(0).cloneContents());
  const formulas = copied.querySelectorAll("mjx-container[data-tex]");
  if (!formulas.length) return;
  formulas.forEach((formula) => formula.replaceWith(formula.dataset.tex));
  // Only what is on the page has lines.
  copied.style.cssText = "position: absolute; left: -9999px; white-space: pre-line";
  document.body.append(copied);
  event.clipboardData.setData("text/plain", copied.innerText.trim());
  copied.remove();
  event.preventDefault();
});
