"use strict";
for (const figure of document.querySelectorAll("figure")) {
  const curves = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot");
  const cursor = plot.querySelector(".cursor");
  const tip = plot.querySelector(".tip");
  const steps = [...new Set(curves.flatMap((curve) => curve.points.map((point) => point[2])))].sort((a, b) => a - b);
  const places = new Map(curves.flatMap((curve) => curve.points.map((point) => [point[2], point[0]])));
  let at = steps.length - 1;

  const nearest = (points, x) =>
    points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));

  const show = (step) => {
    const x = places.get(step);
    tip.replaceChildren(`${figure.dataset.axis} ${step}`);
    for (const curve of curves) {
      const point = nearest(curve.points, x);
      const line = document.createElement("div");
      line.className = curve.ink;
      const elsewhere = point[2] === step ? "" : ` at ${figure.dataset.axis} ${point[2]}`;
      line.textContent = `${curve.name} ${point[3]}${elsewhere}`;
      tip.append(line);
    }
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${x * 100}%`;
    const room = plot.clientWidth - tip.offsetWidth;
    const beside = x * plot.clientWidth + (x < 0.5 ? 10 : -10 - tip.offsetWidth);
    tip.style.left = `${Math.max(0, Math.min(room, beside))}px`;
  };
  const hide = () => { cursor.hidden = tip.hidden = true; };

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    at = steps.reduce((best, step, index) =>
      Math.abs(places.get(step) - x) < Math.abs(places.get(steps[best]) - x) ? index : best, 0);
    show(steps[at]);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(steps[at]); });
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    at = Math.max(0, Math.min(steps.length - 1, at + move));
    show(steps[at]);
  });
}
