"use strict";
for (const figure of document.querySelectorAll(".heatmap")) {
  const plot = figure.querySelector(".plot");
  const cells = [...plot.querySelectorAll("rect")];
  const columns = Number(plot.querySelector("svg").dataset.columns);
  const value = figure.querySelector(".value");
  let at = -1;

  const show = (index) => {
    cells[at]?.classList.remove("at");
    at = index;
    const cell = cells[at];
    cell?.classList.add("at");
    value.textContent = cell ? cell.querySelector("title").textContent : "\u00a0";
  };

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const place = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    const rows = cells.length / columns;
    const column = place((event.clientX - box.left) / box.width, columns);
    show(place((event.clientY - box.top) / box.height, rows) * columns + column);
  });
  plot.addEventListener("pointerleave", () => show(-1));
  plot.addEventListener("blur", () => show(-1));
  plot.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(at < 0 ? 0 : Math.min(cells.length - 1, Math.max(0, at + step)));
  });
}
